"""Tests with the whole of MNIST; skipped unless `make data` has downloaded it or DIGITS_MNIST names its folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ROOT, SAMPLES

from export import checkpoint, evaluate, mnist
from export.__main__ import main
from export.provenance import TEST_DATA

if TYPE_CHECKING:
    from collections.abc import Callable

    from export.mnist import Mnist

ACTIVATIONS = ["sigmoid", "relu"]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = Path(os.environ.get("DIGITS_MNIST", ROOT / mnist.FOLDER))
    if not found.exists():
        pytest.skip(f"MNIST is not in {found}: `make data` fetches it, or DIGITS_MNIST names its folder")
    return found


@pytest.fixture(scope="module")
def full(folder: Path) -> Mnist:
    return mnist.load(folder)


def test_holds_the_digits_in_their_known_numbers(full: Mnist) -> None:
    assert np.bincount(full.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(full.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_held_out_digits_are_the_last_ten_thousand(full: Mnist) -> None:
    assert (len(full.fitting), len(full.validation)) == (50_000, 10_000)
    np.testing.assert_array_equal(full.validation.images, full.train.images[50_000:])


def test_the_committed_sample_is_the_first_ten_of_each_test_digit(full: Mnist, tmp_path: Path) -> None:
    sample = mnist.sample(full.test, each=10)
    mnist.write_idx(sample.images.reshape(-1, 28, 28), tmp_path / "digits-100-images-idx3-ubyte")
    mnist.write_idx(sample.labels, tmp_path / "digits-100-labels-idx1-ubyte")
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (SAMPLES / file.name).read_bytes()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_committed_networks_have_the_recorded_accuracy(
    full: Mnist, make_model: Callable[..., Path], activation: Any
) -> None:
    trained = checkpoint.load(checkpoint.committed(activation))
    measurement = evaluate.measure(make_model(activation), full.test)
    assert trained.measured["accuracy_data"] == TEST_DATA
    assert measurement.accuracy == trained.measured["accuracy"]
    assert measurement.one_bright == trained.measured["one_bright"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_committed_networks_read_well_and_light_one_output(activation: Any) -> None:
    measured = checkpoint.load(checkpoint.committed(activation)).measured
    assert measured["accuracy"] >= 0.97
    assert measured["one_bright"] >= 0.95
    assert measured["over_seeds"]["accuracy"]["mean"] >= 0.97
    assert len(measured["over_seeds"]["accuracy"]["each"]) == 8


def test_evaluate_prints_the_accuracy_and_writes_the_requested_files(
    folder: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {"--json": tmp_path / "figures.json", "--png": tmp_path / "confusion.png"}
    options = [str(part) for pair in written.items() for part in pair]
    monkeypatch.setattr(sys, "argv", ["export", "evaluate", str(model_path), "--data", str(folder), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    figures = json.loads(written["--json"].read_text())
    assert f"{figures['accuracy']:.2%} of 10,000 digits read correctly" in capsys.readouterr().out
    assert np.sum(figures["confusion"]) == 10_000
    assert written["--png"].read_bytes().startswith(b"\x89PNG")
