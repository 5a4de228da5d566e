"""The metrics of many replicas as one text for Prometheus, each series with the label `replica`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def merge(texts: Mapping[str, str]) -> str:
    """Merge the expositions of replicas, given by their ids, to one."""
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for parsed in text_string_to_metric_families(text):
            family = families.setdefault(parsed.name, Metric(parsed.name, parsed.documentation, parsed.type))
            for sample in parsed.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return generate_latest(_Families(families.values())).decode()


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
