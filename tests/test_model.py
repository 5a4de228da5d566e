"""The service loads a complete, unaltered model.onnx of this network and rejects others with a one-line error."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export import checkpoint, graph
from service.errors import ModelFileError
from service.inference.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sealed(model: onnx.ModelProto) -> bytes:
    """Update a model's content_sha256 after a change."""
    for entry in model.metadata_props:
        if entry.key == "content_sha256":
            entry.value = "0" * 64
    return graph._sealed(model)


def test_answers_as_the_reference_does(model_path: Path, digits: np.ndarray) -> None:
    found = Model(model_path).predict(digits)
    expected = checkpoint.load(checkpoint.committed("sigmoid")).network.forward(digits)
    np.testing.assert_array_equal(found.digit, expected.digit)
    for name in ("activations", "layer1", "layer2"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)


def test_the_info_is_the_metadata_of_the_file(make_model: Callable[..., Path]) -> None:
    info = Model(make_model("relu", version="7")).info
    assert (info.name, info.version, info.activation, info.parameter_count) == ("digits", "7", "relu", 13_002)


def test_a_pinned_digest_must_match_the_file(model_path: Path) -> None:
    digest = hashlib.sha256(model_path.read_bytes()).hexdigest()
    Model(model_path, sha256=digest)
    with pytest.raises(ModelFileError, match=f"sha256 {digest}; expected {'0' * 64}"):
        Model(model_path, sha256="0" * 64)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        Model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_names_the_export_command(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file: write it with `python -m export onnx`"):
        Model(tmp_path / "model.onnx")


def test_a_folder_or_a_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would block until a writer opens it
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError, match="is no regular file"):
            Model(path)


def test_a_truncated_model_is_rejected(tmp_path: Path, model_path: Path) -> None:
    whole = model_path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        sentence = refused(tmp_path / "model.onnx", whole[:length])
        assert "damaged" in sentence or "only a part of one" in sentence


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_one_flipped_bit_is_detected(
    tmp_path_factory: pytest.TempPathFactory, model_path: Path, data: st.DataObject
) -> None:
    content = bytearray(model_path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(tmp_path_factory.mktemp("flipped") / "model.onnx", bytes(content))


@given(content=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_no_other_bytes_are_accepted_as_a_model(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    refused(tmp_path_factory.mktemp("bytes") / "model.onnx", content)


def test_an_onnx_file_of_another_source_is_rejected(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(helper.make_graph([node], "other", [x], [y]), ir_version=8)
    assert "not a model that `python -m export onnx` wrote" in refused(
        tmp_path / "model.onnx", model.SerializeToString()
    )


def with_metadata(model: onnx.ModelProto, key: str, value: str | None) -> None:
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    helper.set_model_props(model, kept if value is None else {**kept, key: value})


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "label"
    model.graph.output[0].name = "label"


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Guess"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: with_metadata(m, "version", None), "its metadata lacks version"),
        (lambda m: with_metadata(m, "layer_sizes", "784-32-10"), "its metadata has layers 784-32-10 with 13002"),
        (rename_output, "it has no tensor named digit"),
        (fix_batch, r"its tensor pixels is tensor\(uint8\) \[1, 784\]; expected tensor\(uint8\) \['batch', 784\]"),
        (unknown_operator, "ONNX Runtime .* cannot load it"),
    ],
)
def test_a_model_of_another_shape_is_rejected_with_the_difference(
    tmp_path: Path, model_path: Path, change: Any, sentence: str
) -> None:
    model = onnx.load(model_path)
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(sealed(model))
    with pytest.raises(ModelFileError, match=sentence):
        Model(path)


def test_the_float_form_is_named(make_model: Callable[..., Path]) -> None:
    with pytest.raises(ModelFileError, match=r"its tensor pixels is tensor\(float\)"):
        Model(make_model(input_form="float32"))
