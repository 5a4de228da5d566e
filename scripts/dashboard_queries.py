"""The parts of the dashboard's panels: their fields, matchers and PromQL."""

from __future__ import annotations

from typing import NamedTuple

REPLICA = 'job="digitserve",instance=~"$instance"'
UNARY = f'{REPLICA},grpc_type="unary",grpc_method=~"Predict|ModelInfer"'
OURS = f'{REPLICA},grpc_service=~"digits.v1.DigitService|inference.GRPCInferenceService"'
ENVOY = 'job="envoy",envoy_cluster_name="replicas"'
GREEN, ORANGE, RED = "green", "orange", "red"


class Panel(NamedTuple):
    """One panel: queries with their legends. Units are Grafana's: s, short, percentunit, reqps, bytes.

    `steps` are the values from which the colour is orange, red or green again; below the first one it is `base`.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str
    kind: str = "timeseries"
    steps: tuple[tuple[float, str], ...] = ()
    base: str = GREEN


def rate(name: str, matchers: str = REPLICA, by: str = "") -> str:
    """Return the rate of a counter over Grafana's interval, summed `by` labels."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({name}{{{matchers}}}[$__rate_interval]))"


def mean(name: str) -> str:
    """Return the mean of a histogram's values."""
    return f"{rate(f'{name}_sum')} / {rate(f'{name}_count')}"


def quantile(q: float, name: str, matchers: str = REPLICA, by: str = "") -> str:
    """Return a quantile of a histogram, `by` labels."""
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', matchers, ', '.join(filter(None, (by, 'le'))))})"


def increase(name: str, window: str, by: str, matchers: str = REPLICA) -> str:
    """Return the increase of a counter over a window, summed `by` labels."""
    return f"sum by ({by}) (increase({name}{{{matchers}}}[{window}]))"


def handling(q: float) -> tuple[str, str]:
    """Return the query and the legend of a quantile of unary calls' latency."""
    return quantile(q, "grpc_server_handling_seconds", UNARY, "grpc_method"), "{{grpc_method}}"
