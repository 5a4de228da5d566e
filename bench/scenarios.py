"""The scenarios: each row is one kind of call, to every server that supports its protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import load
from bench.messages import (
    HTTP_INFER,
    INFER,
    PREDICT,
    PREDICT_STREAM,
    http_infer_request,
    infer_request,
    predict_request,
    sample_images,
)

if TYPE_CHECKING:
    from bench.load import Load
    from bench.servers import Running

_SECONDS = 1.0
"""How long one measurement should take, roughly."""
_REQUESTS = {
    PREDICT: predict_request,
    PREDICT_STREAM: predict_request,
    INFER: infer_request,
    HTTP_INFER: http_infer_request,
}
"""The message of each protocol (path)."""


@dataclass(frozen=True)
class Scenario:
    """Calls of `images` images, `in_flight` concurrently on each of `connections`; in a stream, `messages` a call."""

    name: str
    images: int = 1
    connections: int = 1
    in_flight: int = 1
    messages: int = 1
    client: bool = False
    """By grpcio's own client, for latency as a user of Python sees it."""
    only: str = ""
    """The one protocol (path) that it is measured by; else each server's own: digits.v1 for ours, inference for all."""

    @property
    def images_a_call(self) -> int:
        """Images of all messages of one call."""
        return self.images * self.messages

    def path(self, running: Running) -> str:
        """Return the RPC; empty if this server does not support the row."""
        offered = running.server.protocols
        if self.only == PREDICT_STREAM:
            return PREDICT_STREAM if PREDICT in offered else ""
        if self.only:
            return self.only if self.only in offered else ""
        return next((path for path in (PREDICT, INFER) if path in offered), "")

    def measure(self, running: Running, count: int, threads: int = 1) -> Load:
        """Make `count` calls from so many threads of h2load, each with `connections` of its own."""
        path = self.path(running)
        make = _REQUESTS[path]
        images = sample_images(self.images_a_call)
        messages = [make(images[i : i + self.images]) for i in range(0, len(images), self.images)]
        if self.client:
            return load.one_after_the_other(running, path, messages, count)
        connections = self.connections * threads
        return load.calls(
            running, path, messages, connections=connections, in_flight=self.in_flight, count=count, threads=threads
        )

    def count_for(self, running: Running) -> int:
        """Calls that take about a second, found by a short trial, which also warms the server up."""
        trial = max(self.connections * self.in_flight, 50 if self.images_a_call < 1000 else 8)
        rate = self.measure(running, trial).rate
        return max(trial, int(rate * _SECONDS))


SCENARIOS = (
    Scenario("1 image, 1 in flight, Python client", client=True),
    Scenario("1 image, 1 in flight"),
    Scenario("1 image, 64 in flight, 1 connection", in_flight=64),
    Scenario("1 image, 64 in flight, 8 connections", connections=8, in_flight=8),
    Scenario("1 image, 64 in flight, 8 connections, ModelInfer", connections=8, in_flight=8, only=INFER),
    Scenario("1 image, 1 in flight, HTTP", only=HTTP_INFER),
    Scenario("1 image, 64 in flight, 64 connections, HTTP", connections=64, only=HTTP_INFER),
    Scenario("8 images a call, 16 in flight", images=8, connections=4, in_flight=4),
    Scenario("64 images a call, 8 in flight", images=64, connections=4, in_flight=2),
    Scenario("256 images a call, 4 in flight", images=256, connections=4),
    Scenario("1,024 images a call, 4 in flight", images=1024, connections=4),
    Scenario("1,024 images a call, 8 in flight", images=1024, connections=8),
    Scenario("4,096 images a call, 2 in flight", images=4096, connections=2),
    Scenario("streams of 1 image a message, 4 streams", connections=4, messages=500, only=PREDICT_STREAM),
    Scenario("streams of 64 images a message, 4 streams", images=64, connections=4, messages=50, only=PREDICT_STREAM),
)
