"""Network -> ONNX: named tensors, a free batch dimension, metadata, and the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.network import LAYER_SIZES, PARAMETER_COUNT, Network

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint

OPSET = 17
IR_VERSION = 8
"""Read by every ONNX Runtime since 1.12 (July 2022)."""

TOLERANCE = 1e-5
"""How far ONNX Runtime's float32 may be from the numpy reference's float64, on any layer."""

InputForm = Literal["uint8", "float32"]
"""uint8 pixels 0..255 with the 1/255 folded into W1, a quarter of the bytes; or float32 pixels 0..1."""

_ONNX_TYPE = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
_NO_DIGEST = "0" * 64


class ExportError(Exception):
    """The file cannot be written, or its results differ from the reference's."""


def build(checkpoint: Checkpoint, *, version: str, input_form: InputForm = "uint8") -> bytes:
    """The bytes of model.onnx: `pixels` in; `digit`, `activations`, `layer1` and `layer2` out.

    The six parameters are outputs too, by their names and without a node. Runs that request them receive the session's
    own values; other runs have no cost.

    The metadata entry `content_sha256` is the digest of the file with that entry's 64 digits set to 0, which
    detects a damaged file.
    """
    parameters = _folded(checkpoint.network, input_form)
    graph = helper.make_graph(
        nodes=_nodes(checkpoint.network, input_form),
        name="digits",
        inputs=[helper.make_tensor_value_info("pixels", _ONNX_TYPE[input_form], ["batch", LAYER_SIZES[0]])],
        outputs=[
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["batch", LAYER_SIZES[3]]),
            helper.make_tensor_value_info("layer1", TensorProto.FLOAT, ["batch", LAYER_SIZES[1]]),
            helper.make_tensor_value_info("layer2", TensorProto.FLOAT, ["batch", LAYER_SIZES[2]]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in parameters.items()),
        ],
        initializer=[numpy_helper.from_array(a, name) for name, a in parameters.items()],
        doc_string="The network of 3Blue1Brown's 'But what is a neural network?'",
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="digitserve"
    )
    helper.set_model_props(model, _metadata(checkpoint, version, input_form))
    onnx.checker.check_model(model, full_check=True)
    return _sealed(model)


def write(content: bytes, path: Path) -> None:
    """Write the bytes to `path` in one step: a reader sees the old file or the new one, never a part.

    Raises ExportError if it cannot be written; its folder must exist.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as e:
        raise ExportError(f"{path}: cannot be written: {e.strerror}") from e
    finally:
        if temporary is not None:  # of a full disk, or of Ctrl-C
            temporary.unlink(missing_ok=True)


def verify(path: Path, network: Network, pixels: npt.NDArray[np.uint8]) -> float:
    """Run the written file in ONNX Runtime; the largest difference from the reference over all layers.

    Raises ExportError if it exceeds TOLERANCE or a digit differs.
    """
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    form = session.get_inputs()[0].type
    inputs = pixels if form == "tensor(uint8)" else (pixels / np.float32(255)).astype(np.float32)
    outputs = ("layer1", "layer2", "activations", "digit")
    results = dict(zip(outputs, session.run(outputs, {"pixels": inputs}), strict=True))
    expected = network.forward(pixels)
    worst = max(float(np.abs(results[name] - getattr(expected, name)).max()) for name in outputs[:3])
    if worst > TOLERANCE or not np.array_equal(results["digit"], expected.digit):
        raise ExportError(
            f"{path}: ONNX Runtime differs from the numpy reference by {worst:.1e} on {len(pixels)} digits; "
            f"at most {TOLERANCE:.0e} is allowed"
        )
    return worst


def _nodes(network: Network, input_form: InputForm) -> list[onnx.NodeProto]:
    activation = {"sigmoid": "Sigmoid", "relu": "Relu"}[network.activation]
    cast = [helper.make_node("Cast", ["pixels"], ["ink"], to=TensorProto.FLOAT)] if input_form == "uint8" else []
    return [
        *cast,
        helper.make_node("Gemm", ["ink" if cast else "pixels", "W1", "b1"], ["z1"], transB=1),
        helper.make_node(activation, ["z1"], ["layer1"]),
        helper.make_node("Gemm", ["layer1", "W2", "b2"], ["z2"], transB=1),
        helper.make_node(activation, ["z2"], ["layer2"]),
        helper.make_node("Gemm", ["layer2", "W3", "b3"], ["z3"], transB=1),
        helper.make_node("Sigmoid", ["z3"], ["activations"]),
        helper.make_node("ArgMax", ["activations"], ["digit"], axis=1, keepdims=0),
    ]


def _folded(network: Network, input_form: InputForm) -> dict[str, npt.NDArray[np.float32]]:
    parameters = network.parameters()
    if input_form == "uint8":
        parameters["W1"] = (parameters["W1"].astype(np.float64) / 255.0).astype(np.float32)
    return parameters


def _metadata(checkpoint: Checkpoint, version: str, input_form: InputForm) -> dict[str, str]:
    return {
        "name": "digits",
        "version": version,
        "layer_sizes": "-".join(map(str, LAYER_SIZES)),
        "activation": checkpoint.network.activation,
        "parameter_count": str(PARAMETER_COUNT),
        "input": "uint8 pixels, 0..255" if input_form == "uint8" else "float32 pixels, 0..1",
        "accuracy": f"{checkpoint.measured['accuracy']:.4f}" if "accuracy" in checkpoint.measured else "not measured",
        "accuracy_data": str(checkpoint.measured.get("accuracy_data", "none")),
        "weights_sha256": checkpoint.network.sha256(),
        "content_sha256": _NO_DIGEST,
    }


def _sealed(model: onnx.ModelProto) -> bytes:
    blank = model.SerializeToString(deterministic=True)
    digest = hashlib.sha256(blank).hexdigest().encode()
    if blank.count(_NO_DIGEST.encode()) != 1:
        raise ExportError("the place of content_sha256 in the file is not unique")
    return blank.replace(_NO_DIGEST.encode(), digest)
