"""The model: ONNX Runtime session, execution providers, repository of versions, explanation."""
