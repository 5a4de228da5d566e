"""The recording of a training, which the playground replays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT

from export import train
from export.mnist import Examples
from export.recipe import Distortion, Recipe
from export.recording import CHECKPOINTS, EXPONENT, LEVELS, Recording, checkpoints, letters

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS = 40


@pytest.mark.slow
def test_a_training_is_recorded_from_before_its_first_epoch_to_its_last(
    tmp_path: Path, digits: np.ndarray, labels: np.ndarray
) -> None:
    examples = Examples(digits, labels)
    recording = Recording(examples)
    recipe = Recipe(seeds=2, epochs=EPOCHS, batch=20, distortion=Distortion().times(0.15))
    networks = train.fit(recipe, examples, record=recording.add)
    recording.save(tmp_path / "recording.json")
    found = json.loads((tmp_path / "recording.json").read_text())
    assert found["activation"] == "sigmoid"
    assert len(found["accuracy"]) == EPOCHS + 1
    assert found["accuracy"][0] < 0.5 < found["accuracy"][-1]
    assert found["accuracy"][-1] == pytest.approx(np.mean(networks[0].forward(digits).digit == labels), abs=1e-4)
    first, *_, last = found["checkpoints"]
    assert (first["epoch"], last["epoch"]) == (0, EPOCHS)
    assert last["weights"] == letters(networks[0].weights[0])
    assert last["largest"] == pytest.approx(np.abs(networks[0].weights[0]).max(), abs=1e-5)


@pytest.mark.parametrize("last", [0, 1, 2, 5, 30, 768])
def test_few_epochs_keep_their_weights_the_first_and_the_last_among_them(last: int) -> None:
    kept = checkpoints(last)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, last)
    assert len(kept) <= CHECKPOINTS


def test_a_letter_encodes_a_weight_to_half_a_level() -> None:
    weights = np.linspace(-2, 2, 4001, dtype=np.float32)
    levels = np.frombuffer(letters(weights).encode(), np.uint8).astype(int) - ord("A") - LEVELS
    assert (levels.min(), levels.max()) == (-LEVELS, LEVELS)
    exact = np.sign(weights) * np.abs(weights / 2) ** EXPONENT * LEVELS
    assert np.abs(levels - exact).max() <= 0.5 + 1e-6
    assert letters(np.zeros(4, np.float32)) == "FFFF"


def test_the_page_reads_the_letters_as_they_are_written() -> None:
    source = (ROOT / "playground/web/src/numbers.ts").read_text()
    assert f"const LEVELS = {LEVELS}, EXPONENT = {EXPONENT};" in source
