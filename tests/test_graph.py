"""The exported file computes the results of the reference, and the export is reproducible."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from export import checkpoint, graph
from export.network import Activation, Network

if TYPE_CHECKING:
    from pathlib import Path

VARIANTS = [(activation, form) for activation in get_args(Activation) for form in get_args(graph.InputForm)]


def trained(activation: Any) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.committed(activation))


def run(content: bytes, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].type == "tensor(float)":
        pixels = pixels.astype(np.float32) / np.float32(255)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))


@pytest.mark.parametrize(("activation", "form"), VARIANTS)
def test_onnx_runtime_equals_numpy_on_real_digits(activation: Any, form: Any, digits: np.ndarray) -> None:
    network = trained(activation).network
    found = run(graph.build(trained(activation), version="1", input_form=form), digits)
    expected = network.forward(digits)
    for name in ("layer1", "layer2", "activations"):
        np.testing.assert_allclose(found[name], getattr(expected, name), rtol=0, atol=graph.TOLERANCE)
    np.testing.assert_array_equal(found["digit"], expected.digit)


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 40), variant=st.sampled_from(VARIANTS))
@settings(max_examples=25, deadline=None)
def test_onnx_runtime_equals_numpy_for_any_network(seed: int, images: int, variant: Any) -> None:
    activation, form = variant
    rng = np.random.default_rng(seed)
    shapes = [(16, 784), (16, 16), (10, 16)]
    weights: Any = tuple(rng.normal(0, fan_in**-0.5, (out, fan_in)).astype(np.float32) for out, fan_in in shapes)
    biases: Any = tuple(rng.normal(size=out).astype(np.float32) for out, _ in shapes)
    network = Network(activation, weights, biases)
    pixels = rng.integers(0, 256, (images, 784), np.uint8)
    found = run(graph.build(checkpoint.Checkpoint(network, {}, {}), version="1", input_form=form), pixels)
    np.testing.assert_allclose(found["activations"], network.forward(pixels).activations, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("activation", "form"), VARIANTS)
def test_the_same_weights_give_the_same_bytes(activation: Any, form: Any) -> None:
    first = graph.build(trained(activation), version="1", input_form=form)
    assert first == graph.build(trained(activation), version="1", input_form=form)


def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path: Path, model_path: Path) -> None:
    out = tmp_path / "again.onnx"
    subprocess.run(
        [sys.executable, "-m", "export", "onnx", "--out", out], cwd=ROOT, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert out.read_bytes() == model_path.read_bytes()


def test_the_export_is_readable_by_runtimes_of_the_last_two_years(model_path: Path) -> None:
    model = onnx.load(model_path)
    # ONNX Runtime 1.20 (November 2024) reads IR 10 and opset 21: docs/reference/compatibility of onnxruntime.ai
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version <= 21) for entry in model.opset_import] == [("", True)]


def test_the_metadata_describes_the_model(model_path: Path) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(model_path).metadata_props}
    source = trained("sigmoid")
    assert properties["layer_sizes"] == "784-16-16-10"
    assert properties["parameter_count"] == "13002"
    assert properties["activation"] == "sigmoid"
    assert properties["version"] == "1"
    assert float(properties["accuracy"]) == pytest.approx(source.measured["accuracy"], abs=5e-5)
    assert properties["accuracy_data"] == source.measured["accuracy_data"]
    assert properties["weights_sha256"] == source.network.sha256()


def test_content_sha256_is_the_files_digest_with_itself_blanked(model_path: Path) -> None:
    content = model_path.read_bytes()
    stated = {entry.key: entry.value for entry in onnx.load(model_path).metadata_props}["content_sha256"].encode()
    assert hashlib.sha256(content.replace(stated, b"0" * 64)).hexdigest().encode() == stated


def test_verify_rejects_a_file_with_other_results(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "model.onnx"
    graph.write(graph.build(trained("sigmoid"), version="1"), path)
    with pytest.raises(graph.ExportError, match=r"differs from the numpy reference by .* at most 1e-05 is allowed"):
        graph.verify(path, trained("relu").network, digits)


def test_an_unwritable_folder_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("an obstacle")
    with pytest.raises(graph.ExportError, match=r"model\.onnx: cannot be written"):
        graph.write(b"", tmp_path / "file" / "model.onnx")


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(graph.ExportError, match=r"model\.onnx: cannot be written"):
        graph.write(b"", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--weights", "README.md"], 1, "README.md: cannot be read as safetensors"),
        (["--sample", "README.md"], 1, "README.md"),
        (["--activation", "gelu"], 2, "gelu"),
        (["--input", "int4"], 2, "int4"),
        (["--version", "0"], 2, "version"),
        (["--version", "new"], 2, "version"),
    ],
)
def test_the_command_rejects_unusable_arguments(
    tmp_path: Path, arguments: list[str], status: int, sentence: str
) -> None:
    out = tmp_path / "model.onnx"
    (tmp_path / "README.md").write_text("not weights")
    command = [sys.executable, "-m", "export", "onnx", "--out", str(out)]
    paths = [str(tmp_path / a) if a.endswith(".md") else a for a in arguments]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
