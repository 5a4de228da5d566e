"""The training: reproducible, exact in its exported parameters, and able to learn."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import commands_train, plots, train
from export.__main__ import main
from export.augment import distort
from export.mnist import Examples
from export.network import LAYER_SIZES, Network
from export.recipe import Distortion, Recipe

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

ACTIVATIONS = ["sigmoid", "relu"]
SHORT = Recipe(seeds=2, epochs=60, batch=20, distortion=Distortion().times(0.15))


@dataclass(frozen=True, eq=False)
class Run:
    """A short training on 100 digits: its recipe, its progress and its result."""

    recipe: Recipe
    epochs: list[train.Epoch]
    networks: list[Network]


def run(recipe: Recipe, examples: Examples) -> Run:
    epochs: list[train.Epoch] = []
    return Run(recipe, epochs, train.fit(recipe, examples, examples, epochs.append))


@pytest.fixture(scope="module")
def examples(digits: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Examples:
    return Examples(digits, labels)


@pytest.fixture(scope="module", params=ACTIVATIONS)
def short(request: pytest.FixtureRequest, examples: Examples) -> Run:
    return run(replace(SHORT, activation=request.param), examples)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_weights_to_the_last_bit(short: Run, examples: Examples) -> None:
    again = run(short.recipe, examples)
    weights = [network.sha256() for network in short.networks]
    assert [network.sha256() for network in again.networks] == weights
    assert len(set(weights)) == short.recipe.seeds


@pytest.mark.slow
def test_the_training_memorizes_a_hundred_digits(short: Run, examples: Examples) -> None:
    assert short.epochs[-1].loss.mean() < short.epochs[0].loss.mean() / 10
    for network in short.networks:
        forward = network.forward(examples.images)
        assert (forward.digit == examples.labels).mean() > 0.95
        assert ((forward.activations > 0.5).sum(axis=1) == 1).mean() > 0.9


@pytest.mark.slow
def test_the_reported_accuracy_is_that_of_the_returned_network(short: Run, examples: Examples) -> None:
    told = short.epochs[-1].accuracy
    assert told is not None
    for accuracy, network in zip(told, short.networks, strict=True):
        assert accuracy == pytest.approx((network.forward(examples.images).digit == examples.labels).mean())


@pytest.mark.slow
def test_the_drawing_of_the_learning_curve_is_reproducible(tmp_path: Path, short: Run) -> None:
    for name in ("first.png", "second.png"):
        plots.learning_curve(short.epochs, "a title", tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0.01, 3))
@settings(max_examples=10, deadline=None)
def test_the_returned_network_computes_the_trained_function(
    digits: npt.NDArray[np.uint8], activation: Any, seed: int, size: float
) -> None:
    layers = random_layers(seed, size)
    trained = jax.nn.sigmoid(train.logits(activation, tuple((f32(W), f32(b)) for W, b in layers), f32(digits / 255)))
    handed_over = train.to_network(activation, layers).forward(digits).activations
    np.testing.assert_allclose(handed_over, trained, atol=1e-3)  # float32 compared with float64


def f32(array: npt.NDArray[Any]) -> jax.Array:
    return jax.numpy.asarray(array, jax.numpy.float32)


def random_layers(seed: int, size: float) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    rng = np.random.default_rng(seed)
    shapes = itertools.pairwise(LAYER_SIZES)
    return [(rng.normal(0, size / np.sqrt(n), (n, m)), rng.normal(0, size, m)) for n, m in shapes]


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0.01, 3))
@settings(deadline=None)
def test_sigmoids_take_the_place_of_tanh_without_any_error(
    digits: npt.NDArray[np.uint8], seed: int, size: float
) -> None:
    def logits(squash: Any, layers: Any) -> npt.NDArray[np.float64]:
        (W1, b1), (W2, b2), (W3, b3) = layers
        return np.asarray(squash(squash(digits / 255 @ W1 + b1) @ W2 + b2) @ W3 + b3)

    def sigmoid(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 1 / (1 + np.exp(-z))

    layers = random_layers(seed, size)
    np.testing.assert_allclose(
        logits(sigmoid, train._in_sigmoids(layers)), logits(np.tanh, layers), rtol=1e-9, atol=1e-9
    )


def distorted(images: npt.NDArray[np.uint8], limits: Distortion) -> npt.NDArray[np.float32]:
    return np.asarray(jax.jit(distort, static_argnums=2)(jax.random.key(0), images, limits))


def test_no_distortion_leaves_the_digits_as_they_are(digits: npt.NDArray[np.uint8]) -> None:
    found = distorted(digits, Distortion().times(0))
    np.testing.assert_allclose(found, digits, atol=1e-2)


def test_a_distorted_digit_is_another_but_close_picture(digits: npt.NDArray[np.uint8]) -> None:
    found = distorted(digits, Distortion())
    assert found.shape == digits.shape
    assert found.min() >= 0
    assert found.max() <= 255
    ink = found.sum(axis=1) / digits.sum(axis=1)
    assert 0.7 < ink.min() < ink.max() < 1.3
    likeness = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, digits, strict=True)]
    assert 0.4 < min(likeness) < max(likeness) < 1


def test_every_copy_is_distorted_by_its_own_draw(digits: npt.NDArray[np.uint8]) -> None:
    copies = np.repeat(digits[:1], 8, axis=0)
    found = distorted(copies, Distortion())
    assert len(np.unique(found, axis=0)) == 8


def test_a_shift_moves_the_digit_by_so_many_pixels() -> None:
    dot = np.zeros((200, 28, 28), np.uint8)
    dot[:, 14, 14] = 255
    limits = Distortion(rotation=0, scale=0, shear=0, shift=3, bend=0)
    moved = distorted(dot.reshape(-1, 784), limits).reshape(-1, 28, 28)
    middle = (moved.sum(axis=2) @ np.arange(28)) / moved.sum(axis=(1, 2)) - 14
    assert -3 <= middle.min() < -2
    assert 2 < middle.max() <= 3


@pytest.mark.slow
def test_synthetic_digits_are_learnt_with_the_examples(examples: Examples) -> None:
    recipe = replace(SHORT, synthetic_share=2.0, synthetic_pool=200)
    drawn = commands_train._synthetic(recipe)
    assert drawn is not None
    without, together = (train.fit(recipe, examples, synthetic=given)[0] for given in (None, drawn))
    assert (without.forward(drawn.images).digit == drawn.labels).mean() < 0.7
    assert (together.forward(drawn.images).digit == drawn.labels).mean() > 0.9


def test_a_recipe_without_synthetic_digits_draws_none() -> None:
    assert commands_train._synthetic(Recipe(synthetic_share=0)) is None


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--activation", "tanh", "'tanh' is not one of 'sigmoid', 'relu'"),
        ("--seeds", "0", "should be greater than or equal to 1"),
        ("--epochs", "many", "should be a valid integer"),
        ("--synthetic", "-1", "should be greater than or equal to 0"),
        ("--learning-rate", "-1", "should be greater than or equal to 0"),
    ],
)
def test_a_wrong_option_is_rejected_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str, value: str, expected: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert command(monkeypatch, "train", option, value) == 2
    said = capsys.readouterr().err
    assert option in said
    assert expected in said


def test_training_without_data_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, "train", "--data", str(tmp_path)) == 1
    expected = f"{tmp_path}/train-images-idx3-ubyte: there is no such file; `python -m export data` fetches MNIST\n"
    assert capsys.readouterr().err == expected


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `python -m export` with these arguments; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    try:
        return main()
    except SystemExit as e:
        return int(e.code or 0)
