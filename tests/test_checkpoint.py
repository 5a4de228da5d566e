"""The file of the committed weights: saved parameters are read back, and other files are rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy

from export import checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def test_saving_a_loaded_file_gives_the_same_bytes(tmp_path: Path) -> None:
    for activation in ("sigmoid", "relu"):
        committed = checkpoint.committed(activation)  # type: ignore[arg-type]
        copy = tmp_path / activation
        checkpoint.save(checkpoint.load(committed), copy)
        assert copy.read_bytes() == committed.read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as safetensors"),
        (b"\x89PNG\r\n", "cannot be read as safetensors"),
        (safetensors.numpy.save({"W1": np.zeros(1, np.float32)}), "no digitserve metadata"),
        (
            safetensors.numpy.save({"W1": np.zeros(1, np.float32)}, {"digitserve": '{"activation": "relu"}'}),
            r"the parameters are \['W1'\]; expected",
        ),
        (safetensors.numpy.save({}, {"digitserve": "not json"}), "cannot be read"),
    ],
)
def test_other_files_are_rejected_by_name(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=f"weights.safetensors: .*{sentence}"):
        checkpoint.load(path)


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    whole = checkpoint.committed("sigmoid").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(path)


def test_a_missing_file_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"none\.safetensors: cannot be read"):
        checkpoint.load(tmp_path / "none.safetensors")
