"""A no-op grpc.aio server: it answers every message with the same bytes. The floor of this transport.

python -m bench.noop_grpcio PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
from grpc import aio

from service.__main__ import loop_factory

SERVICE = "digits.v1.DigitService"
REPLY = bytes(58)  # as long as the reply to one image


async def predict(_: bytes, __: Any) -> bytes:
    """Answer without looking."""
    return REPLY


async def predict_stream(_: Any, stream: Any) -> None:
    """Answer each message without looking."""
    while await stream.read() is not aio.EOF:
        await stream.write(REPLY)


async def main() -> None:
    """Serve until the process is ended."""
    server = aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    methods: dict[str, Any] = {
        "Predict": grpc.unary_unary_rpc_method_handler(predict),
        "PredictStream": grpc.stream_stream_rpc_method_handler(predict_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:  # the event loop that the service runs on
        runner.run(main())
