"""`POST /v1/explain` and `GET /v1/network`: the answers of gRPC as JSON, and the message of each mistake."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import needs_native, until
from digitserve_client import DigitsClient, DigitsError
from http_in_process import running, send
from http_requests import Client, serving_http
from PIL import Image

from service.inference.model import Model
from service.pb.digits.v1.digits_pb2 import ExplainResponse, Explanation
from service.transports.http.explain import MAX_EXPLANATIONS, encode_explanations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPLAIN, NETWORK = "/v1/explain", "/v1/network"
NEURONS = [(1, 3), (2, 15), (3, 7)]


@pytest.fixture(scope="module", params=["grpcio", pytest.param("native", marks=needs_native)])
def client(model_path: Path, request: pytest.FixtureRequest) -> Iterator[Client]:
    with serving_http(model_path, "--transport", request.param) as found:
        yield found


@pytest.fixture(scope="module")
def over_grpc(client: Client) -> Iterator[DigitsClient]:
    with DigitsClient(client.service.address) as found:
        yield found


def as_json(neurons: list[tuple[int, int]]) -> list[dict[str, int]]:
    return [{"layer": layer, "index": index} for layer, index in neurons]


@pytest.mark.parametrize("neurons", [[], NEURONS])
def test_the_explanation_is_that_of_grpc_to_the_last_bit(
    client: Client, over_grpc: DigitsClient, digits: np.ndarray, neurons: list[tuple[int, int]]
) -> None:
    pixels = digits[70:73]
    reply = client.post(EXPLAIN, {"pixels": pixels.tolist(), "neurons": as_json(neurons), "model_version": "1"})
    assert reply.status == 200, reply.body
    found, expected = reply.json, over_grpc.explain(pixels, neurons)
    assert found["digits"] == expected.answers.digits.tolist()
    assert found["model_version"] == expected.answers.model_version
    for name in ("activations", "layer1", "layer2"):
        np.testing.assert_array_equal(np.float32(found[name]), getattr(expected.answers, name))
    for name, sums in zip(("sums1", "sums2", "sums3"), expected.sums, strict=True):
        np.testing.assert_array_equal(np.float32(found[name]), sums)
    for ours, theirs in zip(found["explanations"], expected.explanations, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one["neuron"] == {"layer": other.layer, "index": other.index}
            assert np.float32(one["bias"]) == np.float32(other.bias)
            np.testing.assert_array_equal(np.float32(one["contributions"]), other.contributions)
            np.testing.assert_array_equal(np.float32(one["gradient"]), other.gradient)


@pytest.mark.parametrize("form", ["rows", "picture"])
def test_images_come_in_the_forms_of_predict(client: Client, digits: np.ndarray, form: str) -> None:
    if form == "rows":
        reply = client.post(EXPLAIN, digits[70].tolist())
    else:
        file = io.BytesIO()
        Image.fromarray(255 - digits[70].reshape(28, 28)).resize((280, 280)).save(file, "PNG")
        reply = client.post(EXPLAIN, file.getvalue(), **{"content-type": "image/png"})
    assert reply.json["digits"] == [7]
    [[explanation]] = reply.json["explanations"]
    assert explanation["neuron"] == {"layer": 3, "index": 7}
    total = explanation["bias"] + sum(explanation["contributions"])
    assert total == pytest.approx(reply.json["sums3"][0][7], abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neurons": {}}, "neurons: is an object; expected an array"),
        ({"neurons": [7]}, "neurons[0]: is an integer; expected an object"),
        ({"neurons": [{"layer": 3}, {"layer": "1"}]}, "neurons[1].layer: is a string; expected an integer"),
        ({"neurons": [{"layer": 1, "index": 0.5}]}, "neurons[0].index: is a number; expected an integer"),
        ({"neurons": [{"layer": -1}]}, "neurons[0].layer: is -1; expected an integer of at least 0"),
        ({"neurons": [{"layer": 1, "index": 2**32}]}, "neurons[0].index: is 4294967296; expected an integer of at"),
        ({"neurons": [{}]}, "neurons[0].layer: is 0; expected 1, 2 or 3"),
        ({"neurons": [{"layer": 3, "index": 10}]}, "neurons[0].index: is 10; layer 3 has neurons 0 to 9"),
        ({"neurons": as_json([(1, 0), (1, 0)])}, "neurons[1]: is neurons[0] once more; expected each neuron at most"),
        ({"neurons": [{}] * 43}, "neurons: are 43; expected at most 42, each neuron once"),
        ({"model_version": 1}, "model_version: is an integer; expected a string"),
    ],
)
def test_a_wrong_field_is_named(client: Client, digits: np.ndarray, fields: dict[str, Any], message: str) -> None:
    reply = client.post(EXPLAIN, {"pixels": digits[:1].tolist(), **fields})
    assert (reply.status, reply.json["error"][: len(message)]) == (400, message)


def test_more_explanations_than_a_response_holds_are_an_error(client: Client, digits: np.ndarray) -> None:
    most = client.post(EXPLAIN, np.resize(digits, (MAX_EXPLANATIONS, 784)).tolist())
    assert len(most.json["explanations"]) == MAX_EXPLANATIONS
    assert len(most.body) < 3 * 2**20
    body = {"pixels": digits[:64].tolist(), "neurons": as_json([(1, 0), (3, 0)])}
    reply = client.post(EXPLAIN, body)
    message = (
        "neurons: 192 explanations, images x neurons with those of layer 1 counted twice; expected at most 128 over "
        "HTTP; send fewer images, or use gRPC"
    )
    assert (reply.status, reply.json) == (400, {"error": message})


async def test_other_requests_are_served_between_the_explanations_of_a_response() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    response = ExplainResponse(digits=[7], activations=[0.0] * 10, explanations=[Explanation()] * 20)
    reply = await encode_explanations(response)
    other.cancel()
    assert len(json.loads(reply.body)["explanations"][0]) == 20
    assert turns >= 20


def test_a_response_of_megabytes_is_compressed_for_a_client_that_accepts_gzip(
    client: Client, digits: np.ndarray
) -> None:
    packed = client.post(EXPLAIN, digits[:64].tolist(), **{"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(packed.body))["explanations"]) == 64


def test_the_network_is_that_of_grpc_to_the_last_bit(client: Client, over_grpc: DigitsClient) -> None:
    found, expected = client.get(NETWORK).json, over_grpc.network()
    assert client.get(f"{NETWORK}?model_version=1").json == found
    assert found["layer_sizes"] == [784, 16, 16, 10]
    assert len(found["content_sha256"]) == 64
    for name in ("name", "version", "activation", "accuracy", "accuracy_data", "weights_sha256"):
        assert found[name] == getattr(expected, name)
    for layer, weights, biases in zip(found["layers"], expected.weights, expected.biases, strict=True):
        np.testing.assert_array_equal(np.float32(layer["weights"]), weights)
        np.testing.assert_array_equal(np.float32(layer["biases"]), biases)


@pytest.mark.parametrize("path", [EXPLAIN, NETWORK])
def test_an_unknown_version_has_the_error_of_grpc(
    client: Client, over_grpc: DigitsClient, digits: np.ndarray, path: str
) -> None:
    with pytest.raises(DigitsError, match="NOT_FOUND") as rejected:
        over_grpc.explain(digits[0], model_version="9")
    if path == NETWORK:
        reply = client.get(f"{path}?model_version=9")
    else:
        reply = client.post(path, {"pixels": digits[0].tolist(), "model_version": "9"})
    assert (reply.status, reply.json) == (404, {"error": rejected.value.message})


@pytest.mark.parametrize(("method", "path", "allow"), [("GET", EXPLAIN, "POST"), ("POST", NETWORK, "GET")])
def test_another_method_is_not_allowed(client: Client, method: str, path: str, allow: str) -> None:
    reply = client.request(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allow)


def test_an_expired_timeout_is_a_gateway_timeout(client: Client, digits: np.ndarray) -> None:
    reply = client.post(f"{EXPLAIN}?timeout=1", digits[:64].tolist())
    assert (reply.status, reply.json) == (504, {"error": "the deadline passed before the model could run"})
    reply = client.post(f"{EXPLAIN}?timeout=soon", digits[:1].tolist())
    message = "timeout: is 'soon'; expected microseconds, an integer of at least 0"
    assert (reply.status, reply.json) == (400, {"error": message})


def test_each_route_is_counted(client: Client, digits: np.ndarray) -> None:
    name = "http_server_request_duration_seconds_count"
    before = client.service.series()
    client.post(EXPLAIN, digits[0].tolist())
    client.get(NETWORK)
    after = client.service.series()
    for key in (("POST", "200", EXPLAIN), ("GET", "200", NETWORK)):
        assert after[name, key] - before.get((name, key), 0) == 1


def test_a_token_is_required(model_path: Path, tmp_path: Path, digits: np.ndarray) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-this-test")
    with serving_http(model_path, "--tokens-file", tokens) as without_token:
        assert without_token.post(EXPLAIN, digits[0].tolist()).status == 401
        without_token.connection.close()
        assert without_token.get(NETWORK).status == 401
        known = Client(without_token.service, token="a-token-of-this-test")  # noqa: S106 (no secret)
        assert known.post(EXPLAIN, digits[0].tolist()).status == 200
        assert known.get(NETWORK).status == 200
        known.connection.close()


async def test_a_full_queue_rejects_before_the_body_is_read(model_path: Path) -> None:
    async with running(Model(model_path), max_queued_images=4) as http:
        first = asyncio.create_task(http.infer())
        await until(lambda: http.held.sizes == [1])
        queued = asyncio.create_task(http.infer(4))
        await until(lambda: http.registry.get_sample_value("digits_queue_images") == 4)
        assert (await http.infer())[0] == 429
        reader, writer = await http.connect()
        request = f"POST {EXPLAIN} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n".encode()
        status, headers, _ = await send(reader, writer, request)
        assert (status, int(headers["retry-after"]) >= 1) == (429, True)
        writer.close()
        http.held.go.set()
        assert [(await task)[0] for task in (first, queued)] == [200, 200]
        assert http.ended(429, EXPLAIN) == 1
