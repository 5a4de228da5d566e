"""Writes what the playground computes with in the browser: both networks, some digits, a recorded training.

    python scripts/page_numbers.py [RECORDING]     after a change of weights; RECORDING is what `train --record` wrote

The first layer's weights are 24-bit integers times a step, which takes a third off the file and changes no activation
by more than 2e-6; everything else is float32. Without RECORDING the page keeps the one that it has.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from export import checkpoint
from export.network import Activation

if TYPE_CHECKING:
    import numpy.typing as npt

    from export.network import Floats, Network

ROOT = Path(__file__).parent.parent
FILE = ROOT / "playground/static/numbers.js"
BEFORE, AFTER = "globalThis.NUMBERS = ", ";\n"
SAMPLES = ROOT / "samples"
HARD = 6
"""How many samples are offered of those that the sigmoid network reads worst."""

BITS = 24


def main() -> None:
    """Write playground/static/numbers.js."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recording", nargs="?", type=Path, help="what `python -m export train --record` wrote")
    path = parser.parse_args().recording
    recording = json.loads(path.read_text()) if path else read()["recording"]
    FILE.write_text(text(numbers(recording)))
    print(f"wrote {FILE.relative_to(ROOT)}")


def read() -> Any:
    """What the file holds."""
    return json.loads(FILE.read_text().removeprefix(BEFORE).removesuffix(AFTER))


def text(content: dict[str, Any]) -> str:
    """The file: a script, since a page that is opened from disk may load no JSON."""
    return f"{BEFORE}{json.dumps(content, separators=(',', ':'))}{AFTER}"


def numbers(recording: dict[str, Any]) -> dict[str, Any]:
    """What the page computes with."""
    checkpoints = {name: checkpoint.load(checkpoint.committed(name)) for name in get_args(Activation)}
    return {
        "networks": {
            name: {**packed(one.network), "accuracy": one.measured["accuracy"]} for name, one in checkpoints.items()
        },
        "samples": samples(checkpoints["sigmoid"].network),
        "recording": recording,
    }


def packed(network: Network) -> dict[str, Any]:
    """The parameters, and the digest that a server gives of the same."""
    first, *others = network.parameters().values()
    step, integers = fixed_point(first)
    rest = np.concatenate([values.reshape(-1) for values in others])
    return {
        "sha256": network.sha256(),
        "step": step,
        "first": _base64(integers),
        "rest": _base64(rest.astype("<f4")),
    }


def fixed_point(weights: Floats) -> tuple[float, npt.NDArray[np.uint8]]:
    """The step, and each weight in steps: a plane of low bytes, one of middle bytes, one of high bytes.

    The sign is in the lowest bit, so that the high bytes, of which most are small, compress.
    """
    step = float(np.abs(weights).max()) / 2 ** (BITS - 1)
    steps = np.rint(weights.reshape(-1) / step).astype(np.int64).clip(-(2 ** (BITS - 1)) + 1, 2 ** (BITS - 1) - 1)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u4")
    return step, folded.view(np.uint8).reshape(-1, 4)[:, :3].T.reshape(-1)


def samples(network: Network) -> dict[str, list[dict[str, Any]]]:
    """Of each digit the sample that the network reads best, and the few that it reads worst, the worst first."""
    images = np.fromfile(SAMPLES / "digits-100-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 784)
    labels = np.fromfile(SAMPLES / "digits-100-labels-idx1-ubyte", np.uint8, offset=8)
    worst_first = np.argsort(_margins(network.forward(images).activations, labels), kind="stable").tolist()
    best = {int(labels[i]): i for i in worst_first}  # the last of each label stays

    def offered(chosen: list[int]) -> list[dict[str, Any]]:
        return [{"label": int(labels[i]), "pixels": _base64(images[i])} for i in chosen]

    return {"clear": offered([best[label] for label in sorted(best)]), "hard": offered(worst_first[:HARD])}


def _margins(outputs: npt.NDArray[np.float64], labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """By how much the output of the label exceeds the largest other, (n,); below 0 where it is misread."""
    is_label = np.arange(outputs.shape[1]) == labels[:, None]
    margins: npt.NDArray[np.float64] = outputs[is_label] - np.where(is_label, -np.inf, outputs).max(axis=1)
    return margins


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


if __name__ == "__main__":
    main()
