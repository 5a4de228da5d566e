"""What a training run depends on besides the data: the recipe, of numbers alone; docs/training.md tells how chosen."""

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
class Recipe:
    """Every hyper-parameter; the defaults made the committed networks."""

    activation: Activation = "sigmoid"
    seeds: int = 8
    epochs: int = 768
    batch: int = 512
    learning_rate: float = 0.05
    weight_decay: float = 0.02
    """Each step takes this share, times the rate, off every weight."""
    brightness: float = 0.2
    """How much ten questions of yes or no, one an output, weigh beside the one question which digit it is."""
    distortion: Distortion = field(default_factory=Distortion)
