"""The comparison with other servers: the available servers, and the server that each is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from conftest import needs_h2load
from http_requests import serving_http

from bench import http_call, servers
from bench.load import Load, LoadError
from bench.messages import HTTP_INFER, INFER, PREDICT, http_infer_request, read_http_infer, sample_images
from bench.report import Results, markdown
from bench.scaling import cpu_of
from bench.scenarios import SCENARIOS, Scenario
from bench.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

ROW = Scenario("1 image, 64 in flight")


def test_a_server_is_compared_with_the_better_triton_of_each_round() -> None:
    results = _results(
        {
            "digitserve native": (200, 300),
            "triton-onnxruntime": (100, 50),
            "triton-onnxruntime-batching": (50, 200),
        }
    )
    assert _cells(results)["digitserve native"] == "1.75 (1.50-2.00)"
    assert _cells(results)["triton-onnxruntime"] == "0.62 (0.25-1.00)"


def test_a_single_triton_is_not_compared_with_itself() -> None:
    assert _cells(_results({"digitserve native": (200,), "triton": (100,)})) == {
        "digitserve native": "2.00 (2.00-2.00)",
        "triton": "",
    }


def test_a_server_that_does_not_start_again_is_skipped_with_its_earlier_rounds() -> None:
    results = _results({"digitserve native": (200, 300), "triton": (100,)})
    results.drop(_server("triton"), "does not answer")
    assert _cells(results) == {"digitserve native": ""}
    assert "Skipped: triton: does not answer" in markdown(results, [ROW])


def test_the_cost_of_a_call_is_a_table_by_server_that_the_scaling_script_reads() -> None:
    results = _results({"digitserve native": (200, 300), "triton": (100, 100)})
    assert cpu_of(ROW.name, "triton", markdown(results, [ROW])) == 1
    assert f"| {ROW.name} | 250 | 100 |" in markdown(results, [ROW])


def test_tritons_own_backend_is_skipped_with_a_reason_without_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["triton-onnxruntime", "triton-onnxruntime-batching"]
    monkeypatch.delenv("TRITON_BACKENDS", raising=False)
    found, missing = servers.available(names)
    assert found == []
    assert list(missing) == names
    assert all(reason.startswith("TRITON_BACKENDS: not set; expected a folder") for reason in missing.values())
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    monkeypatch.setenv("TRITON_BACKENDS", str(tmp_path))
    _, missing = servers.available(names)
    assert all(reason.startswith(f"TRITON_BACKENDS: '{tmp_path}'; expected") for reason in missing.values())


@pytest.fixture(scope="module")
def over_http(model_path: Path) -> Iterator[servers.Running]:
    server = Server("digitserve http", "about it", lambda *_: [], (HTTP_INFER,))
    with serving_http(model_path, "--max-batch-size", "4") as client:
        yield servers.Running(server, client.service.process, "", 0.0, client.address)


def test_a_call_over_http_is_answered_with_the_digits(over_http: servers.Running, labels: np.ndarray) -> None:
    reply = http_call.infer(over_http.http_address, http_infer_request(sample_images(3)))
    assert read_http_infer(reply) == labels[0]


@needs_h2load
def test_rows_over_http_verify_every_reply(over_http: servers.Running) -> None:
    for row in (row for row in SCENARIOS if row.only == HTTP_INFER):
        measured = row.measure(over_http, 200)
        assert measured.answered == 1
        assert measured.rate > 0
    with pytest.raises(LoadError, match=r"digitserve http rejects /v2/models/digits/infer: 400 Bad Request: .*1 to 4"):
        Scenario("too many", images=5, only=HTTP_INFER).measure(over_http, 200)


def test_a_server_is_measured_in_the_rows_of_its_protocols(over_http: servers.Running) -> None:
    grpc_rows = {row.name for row in SCENARIOS if row.only != HTTP_INFER}
    for protocols, expected in (
        ((HTTP_INFER,), {row.name for row in SCENARIOS} - grpc_rows),
        ((PREDICT, INFER), grpc_rows),
    ):
        running = replace(over_http, server=replace(over_http.server, protocols=protocols))
        assert {row.name for row in SCENARIOS if row.path(running)} == expected


def _server(name: str) -> Server:
    return Server(name, "about it", lambda *_: [])


def _results(rates: dict[str, tuple[float, ...]]) -> Results:
    """Create the rounds of each server at these rates."""
    results = Results()
    for name, of_rounds in rates.items():
        for rate in of_rounds:
            results.add_load(_server(name), ROW, Load(rate, cpu_us=1.0, p50=1.0, p99=2.0))
    return results


def _cells(results: Results) -> dict[str, str]:
    """Return the column `against triton`, by server."""
    lines = [line.split(" | ") for line in markdown(results, [ROW]).splitlines() if line.startswith(f"| {ROW.name}")]
    return {cells[1]: cells[-1].removesuffix("|").strip() for cells in lines if cells[1] in results.loads[ROW.name]}
