"""The RPCs that register, list and unregister regions of system shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.unknown_fields import UnknownFieldSet

from service.errors import Unimplemented
from service.handlers.messages import unary, unimplemented
from service.handlers.shared_memory import UNAVAILABLE
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.handlers import MessageHandler
    from service.handlers.shared_memory import SharedMemoryRegions


def handlers(regions: SharedMemoryRegions | None) -> Mapping[str, MessageHandler]:
    """Return the handlers by RPC; without `regions` each is unimplemented."""
    if regions is None:
        names = ("Status", "Register", "Unregister")
        return {f"SystemSharedMemory{name}": unimplemented(f"shared memory {UNAVAILABLE}") for name in names}

    def status(request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        reply = pb.SystemSharedMemoryStatusResponse()
        for name, region in regions.status(request.name).items():
            entry = reply.regions[name]
            entry.name, entry.key, entry.offset, entry.byte_size = region[:4]
        return reply

    def register(request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def unregister(request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    return {
        "SystemSharedMemoryStatus": unary(pb.SystemSharedMemoryStatusRequest, status),
        "SystemSharedMemoryRegister": unary(pb.SystemSharedMemoryRegisterRequest, register),
        "SystemSharedMemoryUnregister": unary(pb.SystemSharedMemoryUnregisterRequest, unregister),
        "CudaSharedMemoryUnregister": unary(pb.NotOffered, _unregister_cuda),
    }


def _unregister_cuda(request: pb.NotOffered) -> pb.NotOffered:
    """Succeed for all regions, of which there are none: Triton's examples begin so."""
    if len(UnknownFieldSet(request)):
        raise Unimplemented("CUDA shared memory is not offered; expected no name")
    return pb.NotOffered()
