"""Every query of the dashboard, the rules and the alerts: its names, and the answer of a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import fast_rules
import grpc
import pytest
import yaml
from conftest import ANSWERS_WITHIN, ROOT, free_port, serving, wait_until
from http_requests import INFER, Client, infer_document

from service.observability.metrics import NATIVE_SERIES
from service.pb.digits.v1.digits_pb2 import PredictRequest
from service.pb.inference.open_inference_pb2 import ModelInferRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from conftest import ServiceProcess, Test

    Ask = Callable[[str], list[dict[str, Any]]]

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [*sorted((PROMETHEUS / "rules").glob("*.yml")), PROMETHEUS / "envoy" / "rules.yml"]
E2E = ROOT / "tests" / "e2e"
GRAFANA = ROOT / "deploy" / "grafana"
GUIDE = (ROOT / "docs" / "operating.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

IMAGES, INFERS, REFUSED, HTTP = 400, 20, 5, 10
ANSWERED = IMAGES + INFERS + 100 + 3 * HTTP
"""The images in all traffic."""
INTERVAL = 2  # seconds between scrapes, and between evaluations of the rules
POD = {"namespace": "digitserve", "pod": "digitserve-0"}  # the labels that the Prometheus operator adds

_has_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool on the PATH: apt-get install prometheus, or prometheus.io/download",
)


def needs_prometheus(test: Test) -> Test:
    """Mark a test as slow, and skip it without Prometheus."""
    return pytest.mark.slow(_has_prometheus(test))


class Query(NamedTuple):
    """A PromQL expression and its place."""

    where: str
    expr: str


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((GRAFANA / "dashboards" / "digitserve.json").read_text())["panels"])


RECORDS = [rule for rule in rules() if "record" in rule]
ALERTS = [rule for rule in rules() if "alert" in rule]
PANELS = [
    Query(f"panel {panel['title']}: {target['legendFormat']}", target["expr"])
    for panel in panels()
    for target in panel.get("targets", [])
]
QUERIES = [
    *(Query(f"{rule['record']} {rule.get('labels', '')}", rule["expr"]) for rule in RECORDS),
    *(Query(rule["alert"], rule["expr"]) for rule in ALERTS),
    *PANELS,
]
OF_PROMETHEUS = {"up", "scrape_duration_seconds", "scrape_samples_scraped", "ALERTS"}
OF_ENVOY = {
    *("envoy_cluster_grpc_0", "envoy_cluster_grpc_14", "envoy_cluster_membership_healthy"),
    *("envoy_cluster_membership_total", "envoy_cluster_upstream_rq_retry", "envoy_cluster_upstream_rq_total"),
    "envoy_listener_ssl_certificate_expiration_unix_time_seconds",
}
"""The series of Envoy 1.40 as an edge with TLS; tests/e2e reads those of a real Envoy."""
EMPTY_WHEN_WELL = ("panel Alerts by name", "panel Last change rejected", "panel Time left of the certificate")
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}


def selectors(expr: str) -> list[str]:
    """Return the series that an expression reads, with their matchers and without their windows."""
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right) ?\([^)]*\)", " ", expr)
    found = re.findall(r"(?<![\w.\"])([a-zA-Z_:][\w:]*)((?:\{[^}]*\})?)(?!\w*\s*\()", bare)
    return [name + matchers for name, matchers in found if name not in WORDS and f"{name}(" not in bare]


def filled(expr: str) -> str:
    """Fill in the variables of a panel's query, for all replicas, as Grafana does."""
    return expr.replace("$instance", ".*").replace("$__rate_interval", "1m")


def adapted() -> tuple[str, str]:
    """Return the queries of prometheus-adapter for the autoscaler: the series, and its value by pod."""
    values = yaml.safe_load((ROOT / "deploy/kubernetes/components/autoscaling/prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    matchers = ",".join(f'{label}="{value}"' for label, value in POD.items())
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")
    assert "<<" not in query
    return rule["seriesQuery"], query


def test_selectors_are_found() -> None:
    expr = 'sum by (job, le) (rate(a_b{job="x",code=~"A|B"}[5m])) / on (job) group_left () job:c:d > 0.5 and up == 1'
    assert selectors(expr) == ['a_b{job="x",code=~"A|B"}', "job:c:d", "up"]


def send_traffic(address: str, digits: np.ndarray) -> None:
    """Send IMAGES calls of one image, INFERS of the other protocol, a stream of all digits, and malformed calls."""
    with grpc.insecure_channel(address) as channel:
        predict = channel.unary_unary("/digits.v1.DigitService/Predict")
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for i in range(IMAGES):
            predict(PredictRequest(pixels=digits[i % 100].tobytes()).SerializeToString(), timeout=ANSWERS_WITHIN)
        for i in range(INFERS):
            request = ModelInferRequest(model_name="digits", raw_input_contents=[digits[i].tobytes()])
            request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
            infer(request.SerializeToString(), timeout=ANSWERS_WITHIN)
        for _ in range(REFUSED):
            with pytest.raises(grpc.RpcError):
                predict(b"", timeout=ANSWERS_WITHIN)
        stream = channel.stream_stream("/digits.v1.DigitService/PredictStream")
        messages = [PredictRequest(pixels=row.tobytes()).SerializeToString() for row in digits]
        list(stream(iter(messages), timeout=ANSWERS_WITHIN))


def send_http_traffic(service: ServiceProcess, digits: np.ndarray) -> None:
    """Send HTTP requests of one image to every route of predictions, and malformed ones."""
    client = Client(service)
    for i in range(HTTP):
        assert client.post(INFER, infer_document(digits[i : i + 1])).status == 200
        for path in ("/v1/predict", "/v1/explain"):
            assert client.post(path, digits[i].tolist()).status == 200
    for _ in range(REFUSED):
        assert client.post(INFER, {}).status == 400
    client.connection.close()


@pytest.fixture(scope="module")
def service(model_path: Path, transport: str) -> Iterator[ServiceProcess]:
    del transport  # sets the environment
    with serving(model_path, "--http-port", "0") as service:
        yield service


def absent(transport: str) -> set[str]:
    """Return the scraped and recorded series that a server on that transport lacks."""
    if transport == "native":
        return set()
    of_native = {rule["record"] for rule in RECORDS if NATIVE_SERIES & names(rule["expr"])}
    return of_native | NATIVE_SERIES


def absent_without_envoy() -> set[str]:
    of_envoy = {rule["record"] for rule in RECORDS if OF_ENVOY & names(rule["expr"])}
    return of_envoy | OF_ENVOY


def names(expr: str) -> set[str]:
    """Return the series that an expression reads, without their matchers."""
    return {selector.split("{")[0] for selector in selectors(filled(expr))}


# Tests of names, without Prometheus.


def test_every_name_in_a_query_is_a_series_of_the_server_or_of_a_rule(service: ServiceProcess) -> None:
    served = {name for name, _ in service.series()} | NATIVE_SERIES
    there = served | {rule["record"] for rule in RECORDS} | OF_PROMETHEUS | OF_ENVOY
    for query in QUERIES:
        assert names(query.expr) or query.expr.startswith("vector("), query
        assert names(query.expr) <= there, query


def test_the_series_of_the_native_transport_are_of_no_other(service: ServiceProcess, transport: str) -> None:
    made = NATIVE_SERIES & {name for name, _ in service.series()}
    assert made == (NATIVE_SERIES if transport == "native" else set())


def test_the_reference_marks_the_series_of_the_native_transport() -> None:
    reference = (ROOT / "docs" / "metrics.md").read_text()
    sections = [section.partition("`\n")[::2] for section in reference.split("\n### `")[1:]]
    assert {name for name, facts in sections if "· native transport" in facts} == NATIVE_SERIES


def test_every_recorded_series_is_read_by_a_panel_or_a_rule() -> None:
    read = {name for query in QUERIES for name in names(query.expr)}
    assert {rule["record"] for rule in RECORDS} <= read


def test_the_shares_of_the_training_digits_add_up_to_one() -> None:
    shares = [rule["expr"] for rule in RECORDS if rule["record"] == "digit:digits_training:share"]
    counts = [int(re.fullmatch(r"vector\((\d+) / 60000\)", share).group(1)) for share in shares]  # type: ignore[union-attr]
    assert (len(counts), sum(counts)) == (10, 60000)


def test_every_alert_has_a_severity_and_a_paragraph_in_the_runbook() -> None:
    headings = {line.lstrip("# ").lower() for line in RUNBOOK.splitlines() if line.startswith("#")}
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in headings


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_is_silent() -> None:
    cases = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]
    for alert in ALERTS:
        own = [check for case in cases for check in case["promql_expr_test"] if f'"{alert["alert"]}"' in check["expr"]]
        assert {bool(check["exp_samples"]) for check in own} == {True, False}, alert["alert"]


def test_every_alert_is_caused_on_a_docker_engine() -> None:
    texts = [(E2E / name).read_text() for name in ("alerts.py", "alerts_in_fast_time.py")]
    caused = {name for text in texts for name in re.findall(r'fires\("(\w+)"', text)}
    assert caused == {alert["alert"] for alert in ALERTS}
    tables = GUIDE.partition("\n## Tests of the alerts\n")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| ([A-Z][\w, ]+) \|", tables, re.MULTILINE) for name in row.split(", ")}
    assert {f"Digitserve{name}" for name in named} == caused


def test_rules_in_fast_time_differ_from_the_real_ones_in_times_alone(tmp_path: Path) -> None:
    fast_rules.write(PROMETHEUS, tmp_path)
    times = re.compile(r"\b\d+(ms|s|m|h|d)\b")
    for path in RULES:
        groups = [
            yaml.safe_load(text.read_text())["groups"] for text in (path, tmp_path / path.relative_to(PROMETHEUS))
        ]
        real, fast = ([rule for group in one for rule in group["rules"]] for one in groups)
        assert [times.sub("T", str(rule)) for rule in fast] == [times.sub("T", str(rule)) for rule in real]
        assert all(rule["for"] != other["for"] for rule, other in zip(fast, real, strict=True) if "for" in rule)
    assert [fast_rules.shorten(time) for time in ("30s", "10m", "1h", "6h", "3d")] == [
        *("1500ms", "30000ms", "180000ms", "90000ms", "1080000ms")
    ]


def test_the_dashboard_is_the_output_of_its_script() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "dashboard.py", "--check"], check=True)


def test_the_dashboard_fits_its_provisioning_and_overlaps_nowhere() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/digitserve.yml").read_text())["providers"]
    assert provider["type"] == "file"
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"] == {"uid": "${datasource}", "type": source["type"]}
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_panel_has_a_description_and_selects_the_chosen_replicas() -> None:
    of_all = {name for query in QUERIES for name in names(query.expr) if name.startswith("job:")}
    for panel in panels():
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
        for target in panel.get("targets", []):
            read = names(target["expr"])
            chosen = "$instance" in target["expr"] or read <= of_all | OF_ENVOY | {"ALERTS"}
            assert chosen, (panel["title"], target["expr"])


def test_a_table_shows_labels_and_a_line_of_numbers_is_low() -> None:
    for panel in panels():
        if panel["type"] == "table":
            (transformation,) = panel["transformations"]
            assert {"Time", "Value", "__name__"} <= transformation["options"]["excludeByName"].keys(), panel["title"]
    lines = {panel["gridPos"]["y"]: set[str]() for panel in panels()}
    for panel in panels():
        lines[panel["gridPos"]["y"]].add(panel["type"])
    of_numbers = [panel["gridPos"]["h"] for panel in panels() if lines[panel["gridPos"]["y"]] == {"stat"}]
    assert of_numbers
    assert max(of_numbers) < 8


def test_every_row_of_the_dashboard_is_a_question_of_the_guide() -> None:
    for panel in panels():
        if panel["type"] == "row":
            assert f"\n## {panel['title']}\n" in RUNBOOK


# Tests with Prometheus.


@needs_prometheus
def test_promtool_accepts_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", *RULES], check=True)  # noqa: S607


@needs_prometheus
def test_each_alert_fires_in_its_cases_and_is_silent_in_others() -> None:
    subprocess.run(["promtool", "test", "rules", PROMETHEUS / "tests" / "alerts.yml"], check=True)  # noqa: S607


@pytest.fixture(scope="module")
def ask(service: ServiceProcess, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A function that queries a Prometheus that has scraped the server before, during and after the traffic."""
    folder = tmp_path_factory.mktemp("prometheus")
    target = urllib.parse.urlsplit(service.metrics_url).netloc
    config = {
        "global": dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{INTERVAL}s"),
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [{"job_name": "digitserve", "static_configs": [{"targets": [target], "labels": POD}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    subprocess.run(["promtool", "check", "config", folder / "prometheus.yml"], check=True)  # noqa: S607
    address = f"127.0.0.1:{free_port()}"
    command = [
        *("prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        *(f"--web.listen-address={address}", "--log.level=error"),
    ]

    def query(expr: str) -> list[dict[str, Any]]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        with urllib.request.urlopen(url, timeout=ANSWERS_WITHIN) as reply:
            return list(json.load(reply)["data"]["result"])

    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: query("digits_serving"), OSError)
            send_traffic(service.address, digits)
            send_http_traffic(service, digits)
            wait_until(lambda: query(f"sum(digits_predictions_total) == {ANSWERED}"))
            [scrape] = query("max(timestamp(digits_predictions_total))")
            # Then two evaluations of every rule, because some rules read the series of others.
            wait_until(lambda: evaluated(address) > float(scrape["value"][1]) + 2 * INTERVAL)
            yield query
        finally:
            process.terminate()


def evaluated(address: str) -> float:
    """Return the Unix time since which every group of rules was evaluated."""
    with urllib.request.urlopen(f"http://{address}/api/v1/rules", timeout=ANSWERS_WITHIN) as reply:
        groups = json.load(reply)["data"]["groups"]
    return min(datetime.fromisoformat(group["lastEvaluation"]).timestamp() for group in groups)


@needs_prometheus
def test_every_query_of_a_panel_and_every_rule_has_an_answer(ask: Ask, transport: str) -> None:
    queries = [*PANELS, *(Query(rule["record"], rule["record"]) for rule in RECORDS)]
    answers = [(query.where, ask(filled(query.expr))) for query in queries]
    without = [
        query.where
        for query in queries
        if names(query.expr) & (absent(transport) | absent_without_envoy()) or query.where.startswith(EMPTY_WHEN_WELL)
    ]
    assert [where for where, answer in answers if not answer] == without
    assert [where for where, answer in answers if any(series["value"][1] == "NaN" for series in answer)] == []


@needs_prometheus
def test_every_series_of_an_alert_exists_and_no_alert_fires(ask: Ask, transport: str) -> None:
    read = {selector for alert in ALERTS for selector in selectors(alert["expr"])}
    missing = {selector for selector in read if not ask(selector)}
    missing -= {'up{job="envoy"}'}
    unheard = absent(transport) | absent_without_envoy()
    assert missing == {selector for selector in read if names(selector) & unheard}
    for alert in ALERTS:
        ask(alert["expr"])  # raises an error of the query
    assert ask('ALERTS{alertstate="firing"}') == []


@needs_prometheus
def test_the_metric_of_the_autoscaler_exists_by_pod(ask: Ask) -> None:
    series, query = adapted()
    (found,) = ask(series)
    assert POD.items() <= found["metric"].items()
    (answer,) = ask(query)
    assert answer["metric"] == {"pod": POD["pod"]}
    assert 0 <= float(answer["value"][1]) < 1


@needs_prometheus
def test_the_autoscalers_metric_is_the_saturation_that_is_recorded(tmp_path: Path) -> None:
    def sample(labels: str) -> list[dict[str, Any]]:
        return [{"labels": labels, "value": 0.25}]

    labels = 'job="digitserve",instance="a",namespace="digitserve",pod="digitserve-0"'
    case = {
        "interval": "5s",
        "input_series": [
            {"series": f"digits_queue_images{{{labels}}}", "values": "16384x24"},
            {"series": f"digits_queue_capacity_images{{{labels}}}", "values": "65536x24"},
        ],
        "promql_expr_test": [
            {"expr": adapted()[1], "eval_time": "1m", "exp_samples": sample('{pod="digitserve-0"}')},
            {
                "expr": "job_instance:digits_queue:saturation",
                "eval_time": "1m",
                "exp_samples": sample('job_instance:digits_queue:saturation{job="digitserve",instance="a"}'),
            },
        ],
    }
    tests = {"rule_files": [str(path) for path in RULES], "evaluation_interval": "5s", "tests": [case]}
    (tmp_path / "adapter.yml").write_text(yaml.safe_dump(tests))
    subprocess.run(["promtool", "test", "rules", tmp_path / "adapter.yml"], check=True)  # noqa: S607


@needs_prometheus
def test_known_values_are_right(ask: Ask, service: ServiceProcess) -> None:
    def value(expr: str) -> float:
        [found] = ask(expr)
        return float(found["value"][1])

    assert value("sum(digits_predictions_total)") == ANSWERED
    assert value("digits_confidence_count") == ANSWERED
    of_routes = 'sum(http_server_request_duration_seconds_count{http_response_status_code="%s"})'
    assert (value(of_routes % 200), value(of_routes % 400)) == (3 * HTTP, REFUSED)
    assert value('grpc_server_handled_total{grpc_method="Predict",grpc_code="OK"}') == IMAGES
    assert value('grpc_server_handled_total{grpc_method="Predict",grpc_code="InvalidArgument"}') == REFUSED
    # Over a few seconds of scrapes, rates are extrapolated by the same factor.
    rate = 'rate(grpc_server_started_total{grpc_method="%s"}[5m])'
    assert value(rate % "Predict") / value(rate % "ModelInfer") == pytest.approx((IMAGES + REFUSED) / INFERS, rel=0.01)
    refused = value('sum(rate(grpc_server_handled_total{grpc_code="InvalidArgument"}[5m]))')
    assert refused / value(rate % "Predict") == pytest.approx(REFUSED / (IMAGES + REFUSED), rel=0.01)
    assert value("sum(job_digit:digits_predictions:share1h)") == pytest.approx(1)
    assert 0 < value("job:digits_predictions:drift1h") < 0.2
    confidence = service.series()["digits_confidence_sum", ()] / ANSWERED
    assert value("job:digits_confidence:mean1h") == pytest.approx(confidence)
    # The native transport batches messages of a stream that arrive together.
    assert 1 <= value("rate(digits_batch_size_sum[5m]) / rate(digits_batch_size_count[5m])") < 2
    assert 0 <= value("job:digits_slo_bad:ratio_5m") <= 1
    buckets = 'sum by (le) (rate(grpc_server_handling_seconds_bucket{grpc_method="Predict"}[5m]))'
    p50, p99 = (value(f"histogram_quantile({q}, {buckets})") for q in (0.5, 0.99))
    assert 0 < p50 <= p99 < 10
    assert value("job:digits_replicas:up") == value("up") == value("job:digits_model:contents") == 1
    assert 0 < value("job:digits_last_success:age_seconds") < 120
    [model] = ask("digits_model_info")
    assert (model["metric"]["version"], model["metric"]["provider"]) == ("1", "CPUExecutionProvider")
