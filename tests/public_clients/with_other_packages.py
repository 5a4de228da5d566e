"""Our client in one process with other packages; prints digits and package versions as JSON.

python with_other_packages.py ADDRESS PIXELS.npy [MODULE ...]
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from importlib.metadata import version

import numpy as np

address, path, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
warnings.simplefilter("error")
from digitserve_client import DigitsClient  # noqa: E402 (after the other packages, as in a program that adds our client)

with DigitsClient(address) as client:
    digits = [int(digit) for digit in client.predict(np.load(path)).digits]
packages = ("grpcio", "protobuf", "grpcio-health-checking", "grpcio-status", "googleapis-common-protos")
json.dump({"digits": digits, "versions": {name: version(name) for name in packages}}, sys.stdout)
