"""python -m service.healthcheck HOST:PORT: exit with 0 where gRPC health says SERVING; the container's own probe."""

from __future__ import annotations

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT = 5.0  # seconds


def main(arguments: list[str]) -> int:
    """Exit status: 0 SERVING, 1 anything else, 2 wrong usage."""
    if len(arguments) != 1:
        print("usage: python -m service.healthcheck HOST:PORT", file=sys.stderr)  # noqa: T201 (what a probe says)
        return 2
    with grpc.insecure_channel(arguments[0]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.RpcError as e:
            print(f"{arguments[0]}: {e.code().name}: {e.details()}", file=sys.stderr)  # noqa: T201 (as above)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(status)  # noqa: T201 (as above)
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
