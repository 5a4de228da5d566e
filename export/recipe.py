"""The recipe of a training run, numbers only; docs/training.md explains the choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.network import Activation


@dataclass(frozen=True)
class Distortion:
    """How far a training image may be distorted; 0 throughout leaves it as it is."""

    rotation: float = 8.0
    """Degrees, either way."""
    scale: float = 0.08
    """Natural logarithm of the factor on each axis, either way."""
    shear: float = 0.08
    """Pixels sideways for each pixel down, either way."""
    shift: float = 0.9
    """Pixels on each axis, either way."""
    bend: float = 0.5
    """Pixels on each axis: the standard deviation of how far each of 5 by 5 control points is moved by itself."""

    def times(self, factor: float) -> Distortion:
        """The same, so many times as strong."""
        return Distortion(*(factor * limit for limit in (self.rotation, self.scale, self.shear, self.shift, self.bend)))


@dataclass(frozen=True)
class Handwriting:
    """How the digits drawn from strokes vary.

    A spread is a standard deviation; those of wobble, width, pen and pressure are of natural logarithms.
    """

    wobble: float = 0.035
    """Displacement of each point of a template, as a share of the digit's height: a standard deviation."""
    wobble_spread: float = 0.5
    width: float = 0.66
    """A digit's width by its height."""
    width_spread: float = 0.3
    slant: float = 0.1
    """Sideways for each unit upwards."""
    slant_spread: float = 0.17
    rotation: float = 5.0
    """Degrees: a standard deviation."""
    pen: float = 2.7
    """Width of the pen in pixels of the 28x28 image."""
    pen_spread: float = 0.4
    pen_limits: tuple[float, float] = (1.4, 6.5)
    pressure: float = 0.15
    """Change of the pen's width from the first segment to the last: a spread."""
    softness: tuple[float, float] = (0.8, 2.6)
    """Width of an edge, in pixels: minimum and maximum."""


@dataclass(frozen=True)
class Recipe:
    """Every hyper-parameter.

    The defaults made the committed ReLU network, and with `synthetic_share` 0.1 the sigmoid network.
    """

    activation: Activation = "sigmoid"
    seeds: int = 8
    epochs: int = 768
    batch: int = 512
    learning_rate: float = 0.05
    weight_decay: float = 0.02
    """Each step takes this share, times the rate, off every weight."""
    brightness: float = 0.2
    """Weight of the binary cross-entropy of the 10 outputs, relative to the cross-entropy of the digit."""
    distortion: Distortion = field(default_factory=Distortion)
    synthetic_share: float = 0.0
    """Digits drawn from strokes for each of MNIST's; distorted as those are."""
    synthetic_pool: int = 100_000
    """Digits drawn from strokes in all: each epoch trains on a random choice of them."""
    handwriting: Handwriting = field(default_factory=Handwriting)
