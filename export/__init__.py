"""The export step: the trained network, its recipe, and the ONNX file that the service runs."""

import os

# ONNX Runtime 1.29 and later reports its use to Microsoft unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
