"""HTTP requests for the tests of the HTTP transport."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from conftest import ANSWERS_WITHIN, serving

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from conftest import ServiceProcess

JSON = {"content-type": "application/json"}
INFER = "/v2/models/digits/infer"


class Reply(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection to the HTTP port of a server."""

    def __init__(self, service: ServiceProcess, context: ssl.SSLContext | None = None, token: str = "") -> None:
        self.service = service
        self.address = http_address(service)
        self._token = {"authorization": f"Bearer {token}"} if token else {}
        if context is None:
            self.connection = http.client.HTTPConnection(self.address, timeout=ANSWERS_WITHIN)
        else:
            self.connection = http.client.HTTPSConnection(self.address, timeout=ANSWERS_WITHIN, context=context)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        self.connection.request(method, path, body, {**self._token, **(headers or {})})
        response = self.connection.getresponse()
        content = response.read()
        return Reply(response.status, {key.lower(): value for key, value in response.getheaders()}, content)

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, document: Any, **headers: str) -> Reply:
        """Send a document as JSON, or bytes unchanged."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.request("POST", path, body, {**JSON, **headers})


def http_address(service: ServiceProcess) -> str:
    """Return the host and port of the HTTP server."""
    return str(next(line for line in service.lines if line["event"] == "serving")["http"])


@contextlib.contextmanager
def serving_http(model: Path, *arguments: str | Path) -> Iterator[Client]:
    """Start a server with an HTTP port, and connect a client."""
    with serving(model, "--http-port", "0", *arguments) as service:
        client = Client(service)
        yield client
        client.connection.close()


def infer_document(pixels: np.ndarray, **fields: Any) -> dict[str, Any]:
    """Create an infer request with its pixels as JSON."""
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [*pixels.shape], "data": pixels.ravel().tolist()}
    return {"inputs": [tensor], **fields}


def binary_infer(pixels: np.ndarray, datatype: str = "UINT8", **fields: Any) -> tuple[bytes, dict[str, str]]:
    """Create an infer request with its pixels as a binary tensor; return body and headers."""
    content = pixels.tobytes()
    tensor = {
        "name": "pixels",
        "datatype": datatype,
        "shape": [*pixels.shape],
        "parameters": {"binary_data_size": len(content)},
    }
    text = json.dumps({"inputs": [tensor], **fields}).encode()
    return text + content, {"Inference-Header-Content-Length": str(len(text))}
