"""The client of the page over gRPC."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from digitserve_client.client import AsyncDigitsClient
from digitserve_client.messages import to_request
from google.protobuf import text_format

from playground.inspection import Batches, Call, InspectedClient
from service.pb.inference.open_inference_pb2 import ModelMetadataRequest, ModelStatisticsRequest
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from digitserve_client.messages import Network
    from google.protobuf.message import Message


class GrpcClient(AsyncDigitsClient, InspectedClient):
    """As AsyncDigitsClient, with the messages as protobuf's text and the data of the Open Inference Protocol."""

    transport = "gRPC"

    @property
    def address(self) -> str:  # type: ignore[override] # read only
        """The server's address."""
        return self._address

    async def call(self, pixels: bytes) -> Call:
        """Predict one image, with its hidden layers."""
        request = to_request(pixels, include_hidden_layers=True)
        began = time.perf_counter()
        reply, request_id = await self._call(self._stub.Predict, request, None)
        return Call(
            digit=reply.digits[0],
            activations=[*reply.activations],
            layer1=[*reply.layer1],
            layer2=[*reply.layer2],
            version=reply.model_version,
            request_id=request_id,
            milliseconds=(time.perf_counter() - began) * 1e3,
            method="digits.v1.DigitService/Predict",
            request=_as_text(request),
            request_bytes=request.ByteSize(),
            reply=_as_text(reply),
            reply_bytes=reply.ByteSize(),
        )

    async def batches(self, network: Network) -> Batches:
        """Return the runs since the server started."""
        request = ModelStatisticsRequest(name=network.name)
        reply, _ = await self._call(self._inference.ModelStatistics, request, None)
        return {one.batch_size: one.compute_infer.count for one in reply.model_stats[0].batch_stats}

    async def runtime(self, network: Network) -> tuple[str, str]:
        """Return the platform and the execution provider."""
        reply, _ = await self._call(self._inference.ModelMetadata, ModelMetadataRequest(name=network.name), None)
        return reply.platform, reply.properties["execution_provider"]

    @property
    def _inference(self) -> Any:
        self._bind()
        return GRPCInferenceServiceStub(self._channel)


def _as_text(message: Message) -> str:
    return text_format.MessageToString(message).rstrip()
