"""The server: loads a model.onnx and answers predict requests over gRPC."""

__version__ = "0.1.0"
