"""The reliability of an answer, from its activations and the form of its picture."""

from __future__ import annotations

import numpy as np
import pytest
from digitserve_client.preparation import is_in_mnist_form
from digitserve_client.uncertainty import HIGHEST_SECOND, LOWEST_TOP

from service import network
from service.handlers.reliability import Reliability, are_in_mnist_form


def test_server_and_client_detect_the_form_of_mnist_by_the_same_rule(digits: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    images = digits.reshape(-1, 28, 28)
    changes = [np.roll(images, (int(y), int(x)), (1, 2)) for y, x in rng.integers(-3, 4, (20, 2))]
    dim = (images * rng.uniform(0.5, 1, (100, 1, 1))).astype(np.uint8)
    noise = rng.integers(0, 256, (50, 28, 28)).astype(np.uint8)
    sparse = np.where(rng.random((50, 28, 28)) < np.linspace(0.3, 0.7, 50)[:, None, None], noise, 0)
    every = np.concatenate([images, *changes, dim, 255 - images, noise, sparse, np.zeros((1, 28, 28), np.uint8)])
    found = are_in_mnist_form(every.reshape(-1, 784))
    assert found.tolist() == [is_in_mnist_form(image) for image in every]
    assert found[:100].all()
    assert 0.1 < found.mean() < 0.9


def test_the_thresholds_are_those_of_the_client() -> None:
    assert (network.LOWEST_TOP, network.HIGHEST_SECOND) == (LOWEST_TOP, HIGHEST_SECOND)


@pytest.mark.parametrize(
    ("first", "second", "score", "is_sure"),
    [
        (1.0, 0.0, 1.0, True),
        (0.75, 0.0, 0.75, True),
        (0.5, 0.5, 0.5, False),
        (1.0, 1.0, 0.0, False),
        (0.0, 0.0, 0.0, False),
        (0.75, 0.25, 0.625, False),
    ],
)
def test_the_score_is_the_probability_of_one_output_alone(
    digits: np.ndarray, first: float, second: float, score: float, is_sure: bool
) -> None:
    activations = np.zeros((1, 10), np.float32)
    activations[0, [7, 1]] = first, second
    reliability = Reliability.of(digits[:1], activations)
    assert reliability.in_distribution[0] == pytest.approx(score)
    assert reliability.sure.tolist() == [is_sure]


def test_a_tie_for_second_goes_to_the_lower_digit(digits: np.ndarray) -> None:
    activations = np.zeros((1, 10), np.float32)
    activations[0, [7, 3, 5]] = 0.9, 0.1, 0.1
    assert Reliability.of(digits[:1], activations).second.tolist() == [3]


def test_a_digit_out_of_form_is_never_sure(digits: np.ndarray) -> None:
    activations = np.zeros((1, 10), np.float32)
    activations[0, 7] = 1
    for pixels in (255 - digits[:1], np.roll(digits[:1].reshape(1, 28, 28), 4, 1).reshape(1, 784)):
        reliability = Reliability.of(pixels, activations)
        assert (reliability.sure.tolist(), reliability.in_distribution.tolist()) == ([False], [0.0])
