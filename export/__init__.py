"""The export step: the trained network, its recipe, and the ONNX file that the service runs."""
