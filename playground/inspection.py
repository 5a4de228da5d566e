"""Calls with their messages as text, and the facts of a server, the same over each transport."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from digitserve_client.messages import Network

LONGEST_TEXT = 800
"""Characters of a message that are shown: 784 pixels would be several thousand."""

Batches = dict[int, int]
"""Runs of the model by the number of images in them."""


@dataclass(frozen=True)
class Call:
    """One Predict of one image: its answer, both messages, and milliseconds from before the first to after the second.

    `method` is the RPC or the HTTP route.
    """

    digit: int
    activations: Sequence[float]
    layer1: Sequence[float]
    layer2: Sequence[float]
    version: str
    request_id: str
    milliseconds: float
    method: str
    request: str
    request_bytes: int
    reply: str
    reply_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the page's data, with long messages shortened."""
        shown = {"request": shorten(self.request), "reply": shorten(self.reply)}
        return {**asdict(self), **shown, "milliseconds": round(self.milliseconds, 3)}


class InspectedClient(ABC):
    """A client of a server on one transport."""

    transport: ClassVar[str]
    address: str

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Return the client; leaving the `async with` block closes it."""

    @abstractmethod
    async def __aexit__(self, *_: object) -> None: ...

    @abstractmethod
    async def call(self, pixels: bytes) -> Call:
        """Predict one image, with its hidden layers; raises DigitsError, as each method does."""

    @abstractmethod
    async def network(self) -> Network:
        """Return the network that serves."""

    @abstractmethod
    async def batches(self, network: Network) -> Batches:
        """Return the runs since the server started."""

    @abstractmethod
    async def runtime(self, network: Network) -> tuple[str, str]:
        """Return the platform and the execution provider."""

    async def burst(self, pixels: bytes, calls: int) -> tuple[float, Batches]:
        """So many calls at once: milliseconds until the last is answered, and in which batches the model ran them."""
        network = await self.network()
        before = await self.batches(network)
        began = time.perf_counter()
        await asyncio.gather(*(self.call(pixels) for _ in range(calls)))
        took = (time.perf_counter() - began) * 1e3
        after = await self.batches(network)
        return took, {n: runs - before.get(n, 0) for n, runs in after.items() if runs > before.get(n, 0)}

    async def describe(self) -> dict[str, Any]:
        """Return the served network, and its provider."""
        network = await self.network()
        platform, provider = await self.runtime(network)
        batches = await self.batches(network)
        return {
            "address": self.address,
            "transport": self.transport,
            "name": network.name,
            "version": network.version,
            "activation": network.activation,
            "accuracy": network.accuracy,
            "sha256": network.weights_sha256,
            "platform": platform,
            "provider": provider,
            "batches": [{"images": n, "runs": runs} for n, runs in sorted(batches.items())],
        }


def shorten(text: str) -> str:
    """Return a text with its middle left out, if it is long."""
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]} ... {text[-half:]}"
