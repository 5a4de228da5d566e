"""The server: loads a model.onnx and answers predict requests over gRPC."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.29 and later reports its use to Microsoft unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
