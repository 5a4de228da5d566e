"""python -m service.healthcheck HOST:PORT: exit with 0 where gRPC health says SERVING; the container's own probe.

Where the environment has DIGITS_TLS_CERT, or the server wants a token for that, it asks /healthz on DIGITS_METRICS_PORT
instead: that tells the same, and needs neither certificate nor token.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT = 5.0  # seconds


def main(arguments: list[str]) -> int:
    """Exit status: 0 SERVING, 1 anything else, 2 wrong usage."""
    if len(arguments) != 1:
        print("usage: python -m service.healthcheck HOST:PORT", file=sys.stderr)  # noqa: T201 (what a probe says)
        return 2
    if os.environ.get("DIGITS_TLS_CERT"):
        return _over_http(arguments[0].rpartition(":")[0])
    with grpc.insecure_channel(arguments[0]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.RpcError as e:
            if e.code() is grpc.StatusCode.UNAUTHENTICATED:
                return _over_http(arguments[0].rpartition(":")[0])
            print(f"{arguments[0]}: {e.code().name}: {e.details()}", file=sys.stderr)  # noqa: T201 (as above)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(status)  # noqa: T201 (as above)
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


def _over_http(host: str) -> int:
    url = f"http://{host}:{os.environ.get('DIGITS_METRICS_PORT') or 9464}/healthz"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            print(reply.read().decode().strip())  # noqa: T201 (what a probe says)
    except (urllib.error.URLError, TimeoutError) as e:
        print(f"{url}: {e}", file=sys.stderr)  # noqa: T201 (as above)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
