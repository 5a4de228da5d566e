"""Benchmarks: this server, what it is built on, and its peers, side by side in one run."""

from commandline import proxies

proxies.bypass()  # every server is on this machine
