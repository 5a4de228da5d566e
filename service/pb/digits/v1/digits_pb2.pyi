from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("pixels", "include_hidden_layers", "model_version")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_HIDDEN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    include_hidden_layers: bool
    model_version: str
    def __init__(self, pixels: _Optional[bytes] = ..., include_hidden_layers: _Optional[bool] = ..., model_version: _Optional[str] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("digits", "activations", "model_version", "layer1", "layer2")
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER1_FIELD_NUMBER: _ClassVar[int]
    LAYER2_FIELD_NUMBER: _ClassVar[int]
    digits: _containers.RepeatedScalarFieldContainer[int]
    activations: _containers.RepeatedScalarFieldContainer[float]
    model_version: str
    layer1: _containers.RepeatedScalarFieldContainer[float]
    layer2: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, digits: _Optional[_Iterable[int]] = ..., activations: _Optional[_Iterable[float]] = ..., model_version: _Optional[str] = ..., layer1: _Optional[_Iterable[float]] = ..., layer2: _Optional[_Iterable[float]] = ...) -> None: ...
