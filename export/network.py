"""The network of the film, 784-16-16-10, and its forward pass in numpy: the reference for everything else."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

LAYER_SIZES = (784, 16, 16, 10)
PARAMETER_COUNT = 13_002
"""784*16 + 16*16 + 16*10 weights and 16 + 16 + 10 biases, as the film counts them."""

Activation = Literal["sigmoid", "relu"]
"""Activation functions of the two hidden layers; the 10 outputs are sigmoids in both variants."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def sigmoid(z: Doubles) -> Doubles:
    """1 / (1 + e^-z), written with tanh so that no z overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def relu(z: Doubles) -> Doubles:
    """max(0, z)."""
    return np.maximum(z, 0.0)


ACTIVATIONS = {"sigmoid": sigmoid, "relu": relu}


@dataclass(frozen=True, eq=False)
class Layers:
    """The values of every layer for n images; in 0..1 if the layer is a sigmoid.

    layer1 and layer2 are (n, 16), activations (n, 10), digit (n,): the brightest output, the lowest on a tie.
    """

    layer1: Doubles
    layer2: Doubles
    activations: Doubles
    digit: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Network:
    """Weights (out, in) and biases (out,) of the three layers, float32, as in a' = f(W a + b).

    Raises ValueError if a shape, a type or a value is not the network's.
    """

    activation: Activation
    weights: tuple[Floats, Floats, Floats]
    biases: tuple[Floats, Floats, Floats]

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation is {self.activation!r}; expected one of {', '.join(get_args(Activation))}")
        for name, array in self.parameters().items():
            expected = _SHAPES[name]
            if array.shape != expected or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype}{list(array.shape)}; expected float32{list(expected)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds a value that is not finite")

    def parameters(self) -> dict[str, Floats]:
        """The six arrays by name, W1 b1 W2 b2 W3 b3, in the order of the layers."""
        pairs = zip(self.weights, self.biases, strict=True)
        return {f"{kind}{i}": array for i, pair in enumerate(pairs, 1) for kind, array in zip("Wb", pair, strict=True)}

    @classmethod
    def from_parameters(cls, activation: Activation, arrays: dict[str, Floats]) -> Network:
        """The network whose `parameters()` these are; ValueError names missing and unknown ones."""
        if set(arrays) != set(_SHAPES):
            raise ValueError(f"the parameters are {sorted(arrays)}; expected {sorted(_SHAPES)}")
        return cls(
            activation,
            (arrays["W1"], arrays["W2"], arrays["W3"]),
            (arrays["b1"], arrays["b2"], arrays["b3"]),
        )

    def sha256(self) -> str:
        """Digest of the six arrays in order, little-endian float32 and row-major: independent of any file format."""
        digest = hashlib.sha256()
        for array in self.parameters().values():
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()

    def forward(self, pixels: npt.NDArray[np.uint8]) -> Layers:
        """Run uint8 pixels (n, 784), 0 background and 255 ink, in float64."""
        activation = ACTIVATIONS[self.activation]
        (W1, W2, W3), (b1, b2, b3) = (_double(self.weights), _double(self.biases))
        layer1 = activation(pixels / 255.0 @ W1.T + b1)
        layer2 = activation(layer1 @ W2.T + b2)
        activations = sigmoid(layer2 @ W3.T + b3)
        return Layers(layer1, layer2, activations, activations.argmax(axis=1))


_SHAPES: dict[str, tuple[int, ...]] = {
    name: shape
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(LAYER_SIZES), 1)
    for name, shape in ((f"W{i}", (fan_out, fan_in)), (f"b{i}", (fan_out,)))
}


def _double(arrays: tuple[Floats, Floats, Floats]) -> tuple[Doubles, Doubles, Doubles]:
    return (arrays[0].astype(np.float64), arrays[1].astype(np.float64), arrays[2].astype(np.float64))
