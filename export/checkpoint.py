"""The file of a trained network: six float32 tensors in safetensors, with their provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from export.network import Activation, Network

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the committed networks: one `<activation>.safetensors` for each variant."""

_KEY = "digitserve"
"""The one metadata key; a single JSON text under it keeps the file's bytes the same at every save."""


class CheckpointError(Exception):
    """The file cannot be read, or does not contain the network; the text has the file and the problem."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network, its recipe and its measurements (both JSON objects without a schema)."""

    network: Network
    recipe: dict[str, Any]
    measured: dict[str, Any]


def committed(activation: Activation) -> Path:
    """The file of the committed network with these hidden units."""
    return WEIGHTS / f"{activation}.safetensors"


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file; the same checkpoint gives the same bytes."""
    provenance = {
        "activation": checkpoint.network.activation,
        "recipe": checkpoint.recipe,
        "measured": checkpoint.measured,
    }
    text = json.dumps(provenance, sort_keys=True)
    path.write_bytes(safetensors.numpy.save(dict(checkpoint.network.parameters()), metadata={_KEY: text}))


def load(path: Path) -> Checkpoint:
    """Read a file that `save` wrote; CheckpointError for any other."""
    try:
        with safe_open(path, framework="numpy") as file:
            provenance = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {e}") from e
    if not isinstance(provenance, dict) or provenance.get("activation") not in get_args(Activation):
        raise CheckpointError(f"{path}: no digitserve metadata: it was not written by `python -m export train`")
    try:
        network = Network.from_parameters(provenance["activation"], arrays)
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}") from e
    return Checkpoint(network, provenance.get("recipe", {}), provenance.get("measured", {}))
