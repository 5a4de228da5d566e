"""python ray_nodes.py WORKERS: a cluster of Ray on this machine, each node with its own processes.

It prints a line of JSON when it is up, and after each command on standard input. `kill I` ends node I without a
shutdown, and `add` adds a node. It ends, with all its nodes, at the end of its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Keeps nodes and drivers on 127.0.0.1 instead of the machine's address."""

os.environ |= LOOPBACK | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # the parent process sets RAY_AUTH_TOKEN
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # the default of 10 would delay the test
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_health_check_initial_delay_ms": "1000",  # so that Ray detects a lost node in seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}

from ray.cluster_utils import Cluster  # noqa: E402 (Ray reads the environment when it is imported)

SIZE: dict[str, Any] = {"object_store_memory": 80_000_000, "include_dashboard": False}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def children(parent: int) -> list[int]:
    """Return the processes that a node's raylet started, such as replicas and proxies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


class Nodes:
    """The head, without resources for replicas, and workers with one proxy port each."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, **SIZE})
        self.address = self._cluster.address
        self._workers: list[Any] = []
        self.ports: list[int] = []

    def add(self) -> None:
        """Start a worker."""
        # On one machine each proxy needs its own port; on separate machines all use the head's port.
        port = free_port()
        environment = {
            "RAY_SERVE_WORKER_PROXY_GRPC_PORT": str(port),
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_port()),
        }
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self._workers.append(self._cluster.add_node(num_cpus=2, wait=True, **SIZE))
        finally:
            os.environ.clear()
            os.environ.update(before)
        self.ports.append(port)

    def kill(self, worker: int) -> None:
        """Kill a worker and all its processes, without a shutdown."""
        node = self._workers[worker]
        [raylet] = [started.process.pid for started in node.all_processes["raylet"]]
        for pid in [*children(raylet), raylet]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


def main() -> None:
    """Start the cluster, execute commands, and stop it."""
    nodes = Nodes()
    try:
        for _ in range(int(sys.argv[1])):
            nodes.add()
        tell(address=nodes.address, ports=nodes.ports)
        for line in sys.stdin:
            command, *arguments = line.split()
            getattr(nodes, command)(*map(int, arguments))
            tell(done=line.strip(), ports=nodes.ports)
    finally:
        nodes.close()


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 (the program's output)


if __name__ == "__main__":
    main()
