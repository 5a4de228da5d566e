"""The ONNX Runtime session: load model.onnx, verify it, warm it up, predict."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from service.errors import ModelFileError
from service.inference.onnx_outputs import with_float_input
from service.inference.sessions import OUTPUTS, DeviceSession, create_cpu_session
from service.network import DIGITS, HIDDEN, PIXELS, ModelInfo, Parameters, Pixels, Predictions

if TYPE_CHECKING:
    from pathlib import Path

    from service.inference.providers import SessionFactory

_SIGNATURE = {
    "pixels": ("tensor(uint8)", PIXELS),
    "digit": ("tensor(int64)", None),
    "activations": ("tensor(float)", DIGITS),
    "layer1": ("tensor(float)", HIDDEN),
    "layer2": ("tensor(float)", HIDDEN),
}
"""Type and width of each tensor; every one has the batch as its first dimension, which must be free."""

_PARAMETERS = {
    "W1": [HIDDEN, PIXELS],
    "W2": [HIDDEN, HIDDEN],
    "W3": [DIGITS, HIDDEN],
    "b1": [HIDDEN],
    "b2": [HIDDEN],
    "b3": [DIGITS],
}
"""Shapes of the weights and biases, which the graph gives out as they stand in it."""

_DIGEST_MARK = b"\x0a\x0econtent_sha256\x12\x40"
"""How the metadata entry `content_sha256` with its 64 hexadecimal digits begins in the file (protobuf fields 1, 2)."""


class Model:
    """One loaded model file; safe to call from several threads.

    Raises ModelFileError, with the file's name, unless it is an unaltered model.onnx of the 784-16-16-10
    network, with the digest `sha256` if given. It is verified on the CPU; then a session of `sessions` runs it. Raises
    ProviderError if the provider cannot run it.
    """

    def __init__(self, path: Path, *, sha256: str = "", sessions: SessionFactory | None = None) -> None:
        try:
            content = _read(path, sha256)
            self._cpu_session = _session(content)
            self._session: DeviceSession | ort.InferenceSession = self._cpu_session
            self.info = _info(self._cpu_session.get_modelmeta().custom_metadata_map)
            _check_signature(self._cpu_session)
            self._warm_up()
            self.parameters = self._parameters()
        except ModelFileError as e:
            raise ModelFileError(f"{path}: {e}") from e.__cause__
        except UnicodeDecodeError:
            raise ModelFileError(f"{path}: its metadata or the name of a tensor is no UTF-8") from None
        self._content, self._sessions = content, sessions
        if sessions is not None:
            self._session = sessions.create(content, self._cpu_session)
        self.provider = str(self._session.get_providers()[0])
        self.runtime = str(ort.__version__)

    def recreate_session(self) -> None:
        """Release the session and create another on the same provider.

        Runs fail meanwhile, and after a ProviderError until the next call. The old session goes first, for a device
        that is lost stays lost as long as any session on it is left.
        """
        if self._sessions is not None:
            if isinstance(self._session, DeviceSession):
                self._session.close()
            self._session = self._sessions.create(self._content, self._cpu_session)

    @property
    def float_graph(self) -> bytes | None:
        """The graph for another session on the CPU, with float pixels 0 to 255; None if a device runs the model."""
        return with_float_input(self._content) if self._session is self._cpu_session else None

    def predict(self, pixels: Pixels) -> Predictions:
        """Run uint8 pixels (n, 784), 0 background and 255 ink; n is at least 1."""
        return Predictions(*self._session.run(OUTPUTS, {"pixels": pixels}))

    def _parameters(self) -> Parameters:
        """Return the session's parameters, by a run."""
        outputs = self._cpu_session.run([*_PARAMETERS], {"pixels": np.zeros((1, PIXELS), dtype=np.uint8)})
        return Parameters(weights=tuple(outputs[:3]), biases=tuple(outputs[3:]))

    def _warm_up(self) -> None:
        """Run the sizes of the traffic, so that the first call needs no allocation, and verify the answers."""
        for n in (1, 64):
            try:
                out = self.predict(np.zeros((n, PIXELS), dtype=np.uint8))
            except Exception as e:
                raise ModelFileError("loads but cannot run: export it again with `python -m export onnx`") from e
            if not (np.isfinite(out.activations).all() and ((out.activations >= 0) & (out.activations <= 1)).all()):
                raise ModelFileError("answers a blank image with activations outside 0..1")


def _read(path: Path, sha256: str) -> bytes:
    """The file's bytes, verified before any parser sees them."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for its writer
            raise ModelFileError("is no regular file")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError("no such file: write it with `python -m export onnx`") from None
    except OSError as e:
        raise ModelFileError(f"cannot be read: {e.strerror}") from e
    actual = hashlib.sha256(content).hexdigest()
    if sha256 and actual != sha256:
        raise ModelFileError(f"sha256 {actual}; expected {sha256}")
    start = content.find(_DIGEST_MARK) + len(_DIGEST_MARK)
    if start < len(_DIGEST_MARK):
        raise ModelFileError(
            "not a model that `python -m export onnx` wrote, or only a part of one: it has no content_sha256"
        )
    stated, blanked = content[start : start + 64], content[:start] + b"0" * 64 + content[start + 64 :]
    if hashlib.sha256(blanked).hexdigest().encode() != stated:
        raise ModelFileError("damaged: its content does not match its content_sha256")
    return content


def _session(content: bytes) -> ort.InferenceSession:
    try:
        return create_cpu_session(content)
    except Exception as e:
        raise ModelFileError(f"ONNX Runtime {ort.__version__} cannot load it: {_first_line(e)}") from e


def _info(metadata: dict[str, str]) -> ModelInfo:
    missing = sorted(set(ModelInfo.__dataclass_fields__) - set(metadata))
    if missing:
        raise ModelFileError(f"its metadata lacks {', '.join(missing)}")
    if metadata["layer_sizes"] != "784-16-16-10" or metadata["parameter_count"] != "13002":
        raise ModelFileError(
            f"its metadata has layers {metadata['layer_sizes']} with {metadata['parameter_count']} parameters; "
            "expected 784-16-16-10 with 13002"
        )
    known = {name: metadata[name] for name in ModelInfo.__dataclass_fields__ if name != "parameter_count"}
    return ModelInfo(parameter_count=13_002, **known)


def _check_signature(session: ort.InferenceSession) -> None:
    outputs = {t.name: (t.type, list(t.shape)) for t in [*session.get_inputs(), *session.get_outputs()]}
    if missing := sorted({*_SIGNATURE, *_PARAMETERS} - set(outputs)):
        raise ModelFileError(
            f"it has no tensor named {', '.join(missing)}: export it again with `python -m export onnx`"
        )
    if len(session.get_inputs()) != 1:
        raise ModelFileError(f"it has {len(session.get_inputs())} inputs; expected 1, pixels")
    for name, shape in _PARAMETERS.items():
        if outputs[name] != ("tensor(float)", shape):
            raise ModelFileError(
                f"its tensor {name} is {outputs[name][0]} {outputs[name][1]}; expected tensor(float) {shape}"
            )
    for name, (type_, width) in _SIGNATURE.items():
        found_type, (batch, *rest) = outputs[name]
        expected = [] if width is None else [width]
        if found_type != type_ or rest != expected or isinstance(batch, int):
            raise ModelFileError(
                f"its tensor {name} is {found_type} {outputs[name][1]}; expected {type_} {['batch', *expected]}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
