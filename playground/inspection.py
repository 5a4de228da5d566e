"""A client that shows its calls: the messages as text, and the server's metadata."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from digitserve_client.client import AsyncDigitsClient
from digitserve_client.messages import to_request
from google.protobuf import text_format

from service.pb.inference.open_inference_pb2 import ModelMetadataRequest, ModelStatisticsRequest
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from digitserve_client.messages import Network
    from digitserve_client.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
    from google.protobuf.message import Message

LONGEST_TEXT = 800
"""Characters of a message that are shown: 784 pixels would be several thousand."""

Batches = dict[int, int]
"""Runs of the model by the number of images in them."""


@dataclass(frozen=True)
class Call:
    """One Predict of one image: both messages, and milliseconds from before the first to after the second."""

    request: PredictRequest
    reply: PredictResponse
    request_id: str
    milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the page's data; the activations are the reply's float32."""
        return {
            "digit": self.reply.digits[0],
            "activations": list(self.reply.activations),
            "layer1": list(self.reply.layer1),
            "layer2": list(self.reply.layer2),
            "version": self.reply.model_version,
            "request_id": self.request_id,
            "milliseconds": round(self.milliseconds, 3),
            "request": as_text(self.request),
            "request_bytes": self.request.ByteSize(),
            "reply": as_text(self.reply),
            "reply_bytes": self.reply.ByteSize(),
        }


class InspectedClient(AsyncDigitsClient):
    """As AsyncDigitsClient, with the messages and the data of the Open Inference Protocol."""

    async def call(self, pixels: bytes) -> Call:
        """Predict one image, with its hidden layers."""
        request = to_request(pixels, include_hidden_layers=True)
        began = time.perf_counter()
        reply, request_id = await self._call(self._stub.Predict, request, None)
        return Call(request, reply, request_id, (time.perf_counter() - began) * 1e3)

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
        about = await self._metadata(network)
        batches = await self.batches(network)
        return {
            "address": self._address,
            "name": network.name,
            "version": network.version,
            "activation": network.activation,
            "accuracy": network.accuracy,
            "sha256": network.weights_sha256,
            "platform": about.platform,
            "provider": about.properties["execution_provider"],
            "batches": [{"images": n, "runs": runs} for n, runs in sorted(batches.items())],
        }

    async def batches(self, network: Network) -> Batches:
        """Since the server started."""
        request = ModelStatisticsRequest(name=network.name)
        reply, _ = await self._call(self._inference.ModelStatistics, request, None)
        return {one.batch_size: one.compute_infer.count for one in reply.model_stats[0].batch_stats}

    async def _metadata(self, network: Network) -> Any:
        reply, _ = await self._call(self._inference.ModelMetadata, ModelMetadataRequest(name=network.name), None)
        return reply

    @property
    def _inference(self) -> Any:
        self._bind()
        return GRPCInferenceServiceStub(self._channel)


def as_text(message: Message) -> str:
    """Return protobuf's text format, with long values shortened in the middle."""
    text = text_format.MessageToString(message).rstrip()
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]} ... {text[-half:]}"
