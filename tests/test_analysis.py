"""Analysis of a network: ablated neurons, detected edges, ordered errors, and pictures without a digit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from conftest import ROOT

from export import analysis, checkpoint
from export.mnist import Examples
from export.network import Activation, Network

if TYPE_CHECKING:
    from pathlib import Path

VARIANTS = get_args(Activation)


def network(activation: Any) -> Network:
    return checkpoint.load(checkpoint.committed(activation)).network


@pytest.fixture(scope="module")
def examples(digits: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(digits, labels)


@pytest.mark.parametrize("activation", VARIANTS)
def test_an_ablated_neuron_moves_its_mean_into_the_biases_above(activation: Any, examples: Examples) -> None:
    whole = network(activation)
    layers = whole.forward(examples.images)
    right = (layers.digit == examples.labels).mean()
    found = analysis.ablate(whole, examples)
    assert [(one.layer, one.index) for one in found] == [(layer, i) for layer in (1, 2) for i in range(16)]
    for one in found[::5]:
        weights, biases = [w.copy() for w in whole.weights], [b.copy() for b in whole.biases]
        values = (layers.layer1, layers.layer2)[one.layer - 1]
        biases[one.layer] += weights[one.layer][:, one.index] * np.float32(values[:, one.index].mean())
        weights[one.layer][:, one.index] = 0
        without = replace(whole, weights=tuple(weights), biases=tuple(biases)).forward(examples.images)
        assert one.lost == pytest.approx(right - (without.digit == examples.labels).mean(), abs=1e-9)
        assert one.lost_by_digit @ np.bincount(examples.labels) / 100 == pytest.approx(one.lost)


def test_ablating_a_neuron_without_influence_costs_no_accuracy(examples: Examples) -> None:
    whole = network("sigmoid")
    weights = [w.copy() for w in whole.weights]
    weights[1][:, 4] = 0
    found = analysis.ablate(replace(whole, weights=tuple(weights)), examples)
    assert found[4].lost == 0
    assert not found[4].lost_by_digit.any()


@pytest.mark.slow
def test_an_edge_is_detected_and_noise_is_not() -> None:
    whole = network("sigmoid")
    y, x = np.mgrid[:28, :28] - np.array([12, 15])[:, None, None]
    edge = x * np.exp(-(x**2 / 2 + y**2 / 8) / 1.5**2)
    first = np.random.default_rng(0).normal(size=(16, 784)).astype(np.float32)
    first[3] = edge.reshape(-1)
    found = analysis.edges(replace(whole, weights=(first, *whole.weights[1:])))
    assert found[3] > 0.99
    assert np.delete(found, 3).max() < 0.1


@pytest.mark.parametrize("activation", VARIANTS)
def test_all_errors_are_listed_the_most_certain_first(activation: Any, examples: Examples) -> None:
    wrong = Examples(examples.images, (examples.labels + 1) % 10)
    layers = network(activation).forward(examples.images)
    found = analysis.mistakes(network(activation), wrong)
    assert sorted(found.rows) == np.flatnonzero(layers.digit != wrong.labels).tolist()
    assert (np.diff(found.brightness) <= 0).all()
    np.testing.assert_array_equal(found.read, layers.digit[found.rows])
    np.testing.assert_array_equal(found.labels, wrong.labels[found.rows])


def test_out_of_distribution_pictures_are_reproducible_and_all_different() -> None:
    first, second = analysis.out_of_distribution(20), analysis.out_of_distribution(20)
    for kind, images in first.items():
        assert images.shape == (20, 784), kind
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, second[kind])
        assert len(np.unique(images, axis=0)) == 20
        assert images.any(axis=1).all()


def test_certainty_counts_the_images_above_each_threshold(examples: Examples) -> None:
    activations = network("relu").forward(examples.images[:30]).activations
    found = analysis.certainty(network("relu"), examples.images[:30])
    assert found.certain == pytest.approx((activations.max(axis=1) > 0.99).mean())
    assert found.one_lit == pytest.approx(((activations > 0.5).sum(axis=1) == 1).mean())
    assert found.favourite_share == pytest.approx(np.bincount(activations.argmax(axis=1)).max() / 30)


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_drawing_of_the_weights_is_reproducible(tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        done = export("draw", "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_out_of_distribution_pictures_are_reported_and_drawn(tmp_path: Path) -> None:
    done = export("out-of-distribution", "--activation", "relu", "--images", "50", "--png", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    assert all(kind in done.stdout for kind in analysis.out_of_distribution(1))
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("command", ["ablate", "mistakes"])
def test_without_mnist_a_command_names_the_download_command(tmp_path: Path, command: str) -> None:
    done = export(command, "--data", str(tmp_path))
    assert done.returncode == 1
    assert "python -m export data" in done.stderr
    assert "Traceback" not in done.stderr
