from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("pixels", "include_hidden_layers", "model_version", "include_reliability")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_HIDDEN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RELIABILITY_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    include_hidden_layers: bool
    model_version: str
    include_reliability: bool
    def __init__(self, pixels: _Optional[bytes] = ..., include_hidden_layers: bool = ..., model_version: _Optional[str] = ..., include_reliability: bool = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("digits", "activations", "model_version", "layer1", "layer2", "second_digits", "sure", "in_distribution")
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER1_FIELD_NUMBER: _ClassVar[int]
    LAYER2_FIELD_NUMBER: _ClassVar[int]
    SECOND_DIGITS_FIELD_NUMBER: _ClassVar[int]
    SURE_FIELD_NUMBER: _ClassVar[int]
    IN_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    digits: _containers.RepeatedScalarFieldContainer[int]
    activations: _containers.RepeatedScalarFieldContainer[float]
    model_version: str
    layer1: _containers.RepeatedScalarFieldContainer[float]
    layer2: _containers.RepeatedScalarFieldContainer[float]
    second_digits: _containers.RepeatedScalarFieldContainer[int]
    sure: _containers.RepeatedScalarFieldContainer[bool]
    in_distribution: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, digits: _Optional[_Iterable[int]] = ..., activations: _Optional[_Iterable[float]] = ..., model_version: _Optional[str] = ..., layer1: _Optional[_Iterable[float]] = ..., layer2: _Optional[_Iterable[float]] = ..., second_digits: _Optional[_Iterable[int]] = ..., sure: _Optional[_Iterable[bool]] = ..., in_distribution: _Optional[_Iterable[float]] = ...) -> None: ...

class Neuron(_message.Message):
    __slots__ = ("layer", "index")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    layer: int
    index: int
    def __init__(self, layer: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("pixels", "neurons", "model_version")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    neurons: _containers.RepeatedCompositeFieldContainer[Neuron]
    model_version: str
    def __init__(self, pixels: _Optional[bytes] = ..., neurons: _Optional[_Iterable[_Union[Neuron, _Mapping]]] = ..., model_version: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("digits", "activations", "model_version", "layer1", "layer2", "sums1", "sums2", "sums3", "explanations")
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER1_FIELD_NUMBER: _ClassVar[int]
    LAYER2_FIELD_NUMBER: _ClassVar[int]
    SUMS1_FIELD_NUMBER: _ClassVar[int]
    SUMS2_FIELD_NUMBER: _ClassVar[int]
    SUMS3_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    digits: _containers.RepeatedScalarFieldContainer[int]
    activations: _containers.RepeatedScalarFieldContainer[float]
    model_version: str
    layer1: _containers.RepeatedScalarFieldContainer[float]
    layer2: _containers.RepeatedScalarFieldContainer[float]
    sums1: _containers.RepeatedScalarFieldContainer[float]
    sums2: _containers.RepeatedScalarFieldContainer[float]
    sums3: _containers.RepeatedScalarFieldContainer[float]
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    def __init__(self, digits: _Optional[_Iterable[int]] = ..., activations: _Optional[_Iterable[float]] = ..., model_version: _Optional[str] = ..., layer1: _Optional[_Iterable[float]] = ..., layer2: _Optional[_Iterable[float]] = ..., sums1: _Optional[_Iterable[float]] = ..., sums2: _Optional[_Iterable[float]] = ..., sums3: _Optional[_Iterable[float]] = ..., explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("neuron", "bias", "contributions", "gradient")
    NEURON_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    neuron: Neuron
    bias: float
    contributions: _containers.RepeatedScalarFieldContainer[float]
    gradient: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, neuron: _Optional[_Union[Neuron, _Mapping]] = ..., bias: _Optional[float] = ..., contributions: _Optional[_Iterable[float]] = ..., gradient: _Optional[_Iterable[float]] = ...) -> None: ...

class GetNetworkRequest(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    def __init__(self, model_version: _Optional[str] = ...) -> None: ...

class GetNetworkResponse(_message.Message):
    __slots__ = ("name", "version", "activation", "layer_sizes", "layers", "accuracy", "accuracy_data", "weights_sha256", "content_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    LAYER_SIZES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_DATA_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    activation: str
    layer_sizes: _containers.RepeatedScalarFieldContainer[int]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    accuracy: str
    accuracy_data: str
    weights_sha256: str
    content_sha256: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., activation: _Optional[str] = ..., layer_sizes: _Optional[_Iterable[int]] = ..., layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., accuracy: _Optional[str] = ..., accuracy_data: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., content_sha256: _Optional[str] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("weights", "biases")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BIASES_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.RepeatedScalarFieldContainer[float]
    biases: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, weights: _Optional[_Iterable[float]] = ..., biases: _Optional[_Iterable[float]] = ...) -> None: ...
