"""The comparison with other servers: which of them are had, and what a server is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import servers
from bench.load import Load
from bench.report import Results, markdown
from bench.scenarios import Scenario
from bench.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ROW = Scenario("1 image, 64 in flight")


def test_a_server_is_held_against_the_better_triton_of_each_round() -> None:
    results = _results(
        {
            "digitserve native": (200, 300),
            "triton-onnxruntime": (100, 50),
            "triton-onnxruntime-batching": (50, 200),
        }
    )
    assert _cells(results)["digitserve native"] == "1.75 (1.50-2.00)"
    assert _cells(results)["triton-onnxruntime"] == "0.62 (0.25-1.00)"


def test_one_triton_is_not_held_against_itself() -> None:
    assert _cells(_results({"digitserve native": (200,), "triton": (100,)})) == {
        "digitserve native": "2.00 (2.00-2.00)",
        "triton": "",
    }


def test_a_server_that_does_not_start_again_is_skipped_with_its_earlier_rounds() -> None:
    results = _results({"digitserve native": (200, 300), "triton": (100,)})
    results.drop(_server("triton"), "does not answer")
    assert _cells(results) == {"digitserve native": ""}
    assert "Skipped: triton: does not answer" in markdown(results, [ROW])


def test_tritons_own_backend_is_skipped_with_a_sentence_without_its_folder(
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


def _server(name: str) -> Server:
    return Server(name, "about it", lambda *_: [])


def _results(rates: dict[str, tuple[float, ...]]) -> Results:
    """Rounds of each server at these rates."""
    results = Results()
    for name, of_rounds in rates.items():
        for rate in of_rounds:
            results.add_load(_server(name), ROW, Load(rate, cpu_us=1.0, p50=1.0, p99=2.0))
    return results


def _cells(results: Results) -> dict[str, str]:
    """The column `against triton`, by server."""
    lines = [line.split(" | ") for line in markdown(results, [ROW]).splitlines() if line.startswith(f"| {ROW.name}")]
    return {cells[1]: cells[-1].removesuffix("|").strip() for cells in lines}
