"""The status page of a real server, on both transports: its content, and no content of clients."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from contextlib import closing
from html.parser import HTMLParser
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from conftest import ANSWERS_WITHIN, on_both_transports, serving, wait_until
from digitserve_client import DigitsClient, DigitsError
from prometheus_client import CollectorRegistry

from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.recent_events import CAPACITY, MAX_VALUE, RecentEvents
from service.observability.rpc_metrics import LATENCY_BUCKETS, Rpc, RpcMetrics
from service.observability.sparkline import ALONE, WIDTH, sparkline
from service.observability.status_page import StatusPage
from service.observability.traffic_history import CAPACITY as SAMPLES
from service.observability.traffic_history import TrafficHistory, quantile

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from conftest import ServiceProcess


def get(service: ServiceProcess, path: str = "/") -> tuple[int, dict[str, str], str]:
    with closing(HTTPConnection(urlsplit(service.metrics_url).netloc, timeout=ANSWERS_WITHIN)) as connection:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, dict(reply.headers), reply.read().decode()


class Document(HTMLParser):
    """A parser of the text of a page, and of its references to other files."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.mark.slow
@on_both_transports
def test_the_page_shows_the_model_the_traffic_and_the_last_rejection(
    model_path: Path, transport: str, digits: npt.NDArray[np.uint8]
) -> None:
    with serving(model_path) as service, DigitsClient(service.address) as client:
        client.predict(digits)
        with pytest.raises(DigitsError):
            client.predict(digits.repeat(20, axis=0))  # more than --max-batch-size

        wait_until(lambda: "p50, now -," not in get(service)[2] and "InvalidArgument" in get(service)[2])
        status, headers, page = get(service)
        document = Document(page)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        model = {name: str(value) for name, value in service.lines[-1].items()}
        for fact in ("SERVING", transport, model["model_version"], model["provider"], model["weights_sha256"][:16]):
            assert fact in document.text
        assert "call rejected" in document.text
        assert "2000 images" in document.text.replace(",", "")
        assert re.search(r"Images, now [\d.]+/s, max [\d.]+/s", page)
        assert document.tags.count("svg") == 5


@on_both_transports
def test_the_page_loads_no_file_and_runs_no_script(server: ServiceProcess) -> None:
    _, headers, page = get(server)
    document = Document(page)
    assert "script" not in document.tags
    assert set(document.references) == {"/metrics", "/healthz"}
    assert "url(" not in page
    assert "@import" not in page
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


@on_both_transports
def test_the_page_is_off_by_an_option_and_the_other_paths_stay(model_path: Path) -> None:
    with serving(model_path, "--no-status-page") as service:
        status, headers, text = get(service)
        assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert "/metrics" in text
        assert get(service, "/healthz")[2].startswith("SERVING")
        assert "grpc_server_handled_total" in get(service, "/metrics")[2]


def test_text_of_clients_is_escaped_and_cut() -> None:
    registry, events = CollectorRegistry(), RecentEvents()
    page = StatusPage(registry, Metrics(registry), events, lambda: True)
    log = events.record(make_logger("json", "error"))
    log.warning("call rejected", request_id="<script>alert(1)</script>", reason="x" * 100_000)
    rendered = page.render()
    assert "<script" not in rendered
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered
    assert "x" * MAX_VALUE in rendered
    assert "x" * (MAX_VALUE + 1) not in rendered


def test_events_are_kept_below_the_level_of_the_log_and_reach_it(capfd: pytest.CaptureFixture[str]) -> None:
    events = RecentEvents()
    log = events.record(make_logger("json", "error"))
    log.info("model loaded", model_version="2")
    log.error("model rejected", reason="a reason")
    assert [event.name for event in events.changes] == ["model rejected", "model loaded"]
    written = capfd.readouterr().err
    assert '"reason": "a reason"' in written
    assert "model loaded" not in written


def test_a_flood_of_rejections_hides_no_reload_and_keeps_the_memory_bounded() -> None:
    events = RecentEvents()
    log = events.record(make_logger("json", "critical"))
    log.info("model loaded", model_version="2")
    for number in range(1000):
        log.warning("call rejected", reason=str(number))
    assert [event.name for event in events.changes] == ["model loaded"]
    assert [event.fields["reason"] for event in events.rejections] == [str(n) for n in range(999, 999 - CAPACITY, -1)]


def test_the_history_is_bounded_and_counts_prediction_calls_alone() -> None:
    metrics = Metrics(CollectorRegistry())
    unary = RpcMetrics(metrics, Rpc("unary", "digits.v1.DigitService", "Predict"))
    stream = RpcMetrics(metrics, Rpc("bidi_stream", "digits.v1.DigitService", "PredictStream"))
    watch = RpcMetrics(metrics, Rpc("server_stream", "grpc.health.v1.Health", "Watch"))
    history = TrafficHistory(metrics)
    history.sample()
    for rpc, seconds, code in ((unary, 0.002, "OK"), (stream, 9.0, "OK"), (watch, 9.0, "Canceled")):
        rpc.handling.observe(seconds)
        rpc.handled[code] += 1
    history.sample()
    for _ in range(SAMPLES - 1):
        history.sample()
    samples = history.samples
    assert len(samples) == SAMPLES
    assert samples[0].calls > 0  # earlier samples are beyond the bound
    assert samples[0].failed_calls == 0
    assert samples[0].p99 is not None
    assert 0.0015 < samples[0].p99 <= 0.0025
    assert samples[-1] == (0, 0, 0, None, None)


def test_quantiles_are_those_of_prometheus() -> None:
    assert quantile(0.5, (1.0, 2.0, 4.0), (0, 4, 0, 0)) == pytest.approx(1.5)
    assert quantile(0.5, (1.0, 2.0, 4.0), (2, 0, 2, 0)) == pytest.approx(1.0)
    assert quantile(0.99, LATENCY_BUCKETS, (*(0,) * len(LATENCY_BUCKETS), 7)) == LATENCY_BUCKETS[-1]
    assert quantile(0.5, (1.0,), (0, 0)) is None


@pytest.mark.parametrize("place", [0, 90, 179])
def test_a_value_between_gaps_is_wide_enough_to_be_seen(place: int) -> None:
    picture = sparkline([4.0 if at == place else None for at in range(180)], 180, "p99")
    (line,) = re.findall(r'class="line" d="M([^"]+)"', picture)
    left, _, right, _ = map(float, line.split())
    assert 0 <= left < right <= WIDTH
    assert right - left >= ALONE


@pytest.mark.parametrize("series", [[], [None], [0.0], [1.0, None, 3.0, 2.0], [0.0, 0.0], [None] * 180])
def test_a_sparkline_is_well_formed_and_stays_in_its_frame(series: list[float | None]) -> None:
    picture = sparkline(series, 180, "a <label>")
    root = ET.fromstring(picture)  # noqa: S314 (our own text)
    assert root.attrib["aria-label"] == "a <label>"
    for path in root:
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path.attrib["d"])]
        assert all(0 <= number <= 180 for number in numbers)
