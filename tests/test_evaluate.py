"""The evaluation of a model.onnx: its counts, and the agreement of ONNX Runtime with the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from export import checkpoint, evaluate, plots, weaknesses
from export.mnist import Examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt


def bright(*lit: int) -> list[float]:
    return [0.9 if digit in lit else 0.1 for digit in range(10)]


def test_each_digit_is_counted_by_its_answer() -> None:
    activations = np.array([bright(3), bright(3), bright(5), bright(7)])
    measurement = evaluate.Measurement.of(activations, np.array([3, 3, 3, 7], np.uint8))
    assert measurement.images == 4
    assert measurement.accuracy == 0.75
    assert measurement.confusion[3, 3] == 2
    assert measurement.mistakes() == [(3, 5, 1)]
    assert measurement.by_digit()[3] == pytest.approx(2 / 3)
    assert measurement.by_digit()[7] == 1


def test_one_bright_output_is_neither_none_nor_two() -> None:
    activations = np.array([bright(3), bright(), bright(3, 5), bright(9)])
    assert evaluate.Measurement.of(activations, np.zeros(4, np.uint8)).one_bright == 0.5


def test_an_output_of_exactly_one_half_is_not_bright() -> None:
    assert evaluate.Measurement.of(np.full((1, 10), 0.5), np.zeros(1, np.uint8)).one_bright == 0


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("input_form", ["uint8", "float32"])
def test_onnx_runtime_reads_the_digits_as_the_reference_does(
    make_model: Callable[..., Path],
    digits: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    activation: Any,
    input_form: str,
) -> None:
    network = checkpoint.load(checkpoint.committed(activation)).network
    expected = evaluate.Measurement.of(network.forward(digits).activations, labels)
    found = evaluate.measure(make_model(activation, input_form=input_form), Examples(digits, labels))
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_the_committed_networks_read_the_committed_digits(
    digits: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], activation: Any
) -> None:
    network = checkpoint.load(checkpoint.committed(activation)).network
    measurement = evaluate.Measurement.of(network.forward(digits).activations, labels)
    assert measurement.accuracy >= 0.95
    assert measurement.one_bright >= 0.90


def test_a_missing_model_is_a_one_line_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(
        evaluate.ModelError, match=r"none\.onnx: there is no such file; `python -m export onnx` writes it"
    ):
        evaluate.measure(tmp_path / "none.onnx", Examples(np.zeros((1, 784), np.uint8), np.zeros(1, np.uint8)))


def test_a_file_that_is_not_a_model_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(evaluate.ModelError, match=r"foreign\.onnx: ONNX Runtime cannot load it") as error:
        evaluate.measure(path, Examples(np.zeros((1, 784), np.uint8), np.zeros(1, np.uint8)))
    assert "\n" not in str(error.value)


def test_the_picture_of_the_errors_is_reproducible(tmp_path: Path) -> None:
    measurement = evaluate.Measurement(np.diag(np.arange(10)), one_bright=1.0)
    for name in ("first.png", "second.png"):
        plots.confusion(measurement, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_a_shift_moves_the_ink_and_brings_in_background() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 5, 26] = 200
    moved = weaknesses.shifted(image.reshape(1, 784), 1, 2).reshape(28, 28)
    assert moved[7, 27] == 200
    assert moved.sum() == 200
    assert weaknesses.shifted(image.reshape(1, 784), 2, 0).sum() == 0


def test_a_turn_is_clockwise_and_by_the_angle(digits: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(weaknesses.turned(digits, 0), digits)
    quarter = np.rot90(digits.reshape(-1, 28, 28), -1, axes=(1, 2)).reshape(-1, 784)
    np.testing.assert_allclose(weaknesses.turned(digits, 90).astype(int), quarter, atol=1)


def test_weaknesses_are_worse_than_none(
    make_model: Callable[..., Path], digits: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> None:
    found = {row.change: row for row in weaknesses.measure(make_model(), Examples(digits, labels))}
    whole = found["as they are"].accuracy
    assert whole is not None
    assert whole > 0.95
    for change in ("4 px to the right", "turned by 45 degrees", "ink and paper exchanged"):
        accuracy = found[change].accuracy
        assert accuracy is not None
        assert accuracy < whole
    assert found["blank"].accuracy is None
