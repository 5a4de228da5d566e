"""Benchmarks: this server, its foundations, and its peers, side by side in one run."""

from commandline import proxies

proxies.bypass()  # every server is on this machine
