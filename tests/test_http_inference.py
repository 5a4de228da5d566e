"""The Open Inference Protocol over HTTP: the answers and errors of gRPC, from the same handlers."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import grpc
import numpy as np
import pytest
from conftest import ROOT, launch, needs_native, serving
from drawings import draw_digits
from http_requests import INFER, Client, Reply, binary_infer, infer_document, serving_http
from PIL import Image

from service.handlers.shared_memory import UNAVAILABLE
from service.pb.inference import open_inference_pb2 as pb
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OUTPUTS = ("activations", "digit", "layer1", "layer2")
MAX_BATCH_SIZE = 64


@pytest.fixture(scope="module", params=["grpcio", pytest.param("native", marks=needs_native)])
def client(model_path: Path, request: pytest.FixtureRequest) -> Iterator[Client]:
    options = ("--transport", request.param, "--max-batch-size", str(MAX_BATCH_SIZE))
    with serving_http(model_path, *options) as found:
        yield found


@pytest.fixture(scope="module")
def stub(client: Client) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(client.service.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def infer_over_grpc(stub: GRPCInferenceServiceStub, pixels: np.ndarray) -> dict[str, np.ndarray]:
    request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    response = stub.ModelInfer(request)
    wire = {"FP32": "<f4", "INT64": "<i8"}
    return {
        output.name: np.frombuffer(raw, wire[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def tensors(reply: Reply) -> dict[str, np.ndarray]:
    """Return the outputs of a response, JSON or binary."""
    length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    document, rest = json.loads(reply.body[:length]), reply.body[length:]
    found = {}
    for output in document["outputs"]:
        wire = {"FP32": "<f4", "INT64": "<i8"}[output["datatype"]]
        if size := output.get("parameters", {}).get("binary_data_size"):
            values, rest = np.frombuffer(rest[:size], wire), rest[size:]
        else:
            values = np.array(output["data"], wire)
        found[output["name"]] = values.reshape(output["shape"])
    assert rest == b""
    return found


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("form", ["json", "nested", "json fp32", "binary", "binary fp32", "gzip", "deflate"])
def test_every_form_of_a_request_gets_the_answer_of_grpc(
    client: Client, stub: GRPCInferenceServiceStub, digits: np.ndarray, form: str, batch: int
) -> None:
    pixels = digits[:batch]
    document = infer_document(pixels)
    if form == "nested":
        document["inputs"][0]["data"] = pixels.tolist()
    if form == "json fp32":
        document["inputs"][0].update(datatype="FP32", data=(pixels.ravel() / 255).tolist())
    if form.startswith("binary"):
        floats = (pixels / np.float32(255)).astype("<f4")
        body, headers = binary_infer(floats, "FP32") if form == "binary fp32" else binary_infer(pixels)
        reply = client.post(INFER, body, **headers)
    elif form in ("gzip", "deflate"):
        packed = {"gzip": gzip.compress, "deflate": zlib.compress}[form](json.dumps(document).encode())
        reply = client.post(INFER, packed, **{"content-encoding": form})
    else:
        reply = client.post(INFER, document)
    assert reply.status == 200, reply.body
    expected = infer_over_grpc(stub, pixels)
    found = tensors(reply)
    assert [*found] == [*OUTPUTS]
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_outputs_are_binary_on_request(client: Client, stub: GRPCInferenceServiceStub, digits: np.ndarray) -> None:
    expected = infer_over_grpc(stub, digits[:3])
    outputs = [{"name": "digit", "parameters": {"binary_data": True}}, {"name": "activations"}]
    for fields in (
        {"parameters": {"binary_data_output": True}},
        {"outputs": outputs},
        {"outputs": [{"name": "layer2"}], "parameters": {"binary_data_output": True}},
    ):
        reply = client.post(INFER, infer_document(digits[:3], **fields))
        assert reply.headers["content-type"] == "application/octet-stream"
        for name, values in tensors(reply).items():
            np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(
    "accepted", ["gzip", "deflate, gzip;q=0.5", "br;q=1.0, GZIP ; q=1.000, *;q=0", "gzip; q=0.001"]
)
def test_a_large_response_is_compressed_for_a_client_that_accepts_gzip(
    client: Client, digits: np.ndarray, accepted: str
) -> None:
    plain = client.post(INFER, infer_document(digits[:20]))
    packed = client.post(INFER, infer_document(digits[:20]), **{"accept-encoding": accepted})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body


@pytest.mark.parametrize("accepted", ["gzip;q=0", "br, gzip; q=0.000", "identity", "x-gzip2", "gzip;q=high"])
def test_a_client_that_does_not_accept_gzip_gets_a_plain_response(
    client: Client, digits: np.ndarray, accepted: str
) -> None:
    reply = client.post(INFER, infer_document(digits[:20]), **{"accept-encoding": accepted})
    assert "content-encoding" not in reply.headers
    assert len(reply.json["outputs"]) == len(OUTPUTS)


def test_the_id_the_version_and_the_request_id_are_returned(client: Client, digits: np.ndarray) -> None:
    reply = client.post(
        "/v2/models/digits/versions/1/infer", infer_document(digits[:1], id="r7"), **{"x-request-id": "mine"}
    )
    assert (reply.json["id"], reply.json["model_name"], reply.json["model_version"]) == ("r7", "digits", "1")
    assert reply.headers["x-request-id"] == "mine"


def test_metadata_is_that_of_grpc(client: Client, stub: GRPCInferenceServiceStub) -> None:
    server = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert client.get("/v2").json == {
        "name": server.name,
        "version": server.version,
        "extensions": [*server.extensions],
    }
    model = stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
    document = client.get("/v2/models/digits").json
    assert document == client.get("/v2/models/digits/versions/1").json
    assert [(one["name"], one["datatype"], one["shape"]) for one in document["outputs"]] == [
        (one.name, one.datatype, [*one.shape]) for one in model.outputs
    ]
    assert document["properties"] == dict(model.properties)
    config = client.get("/v2/models/digits/config").json
    assert (config["max_batch_size"], config["input"][0]["data_type"]) == (MAX_BATCH_SIZE, "TYPE_UINT8")
    assert client.post("/v2/repository/index", {}).json == [
        {"name": "digits", "version": "1", "state": "READY", "reason": ""}
    ]


def test_health_and_readiness(client: Client) -> None:
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.get("/v2/health/ready").json == {"ready": True}
    assert client.get("/v2/models/digits/ready").json == {"name": "digits", "ready": True}
    assert client.request("HEAD", "/v2/health/ready").status == 200


def test_statistics_count_requests_over_http(client: Client, digits: np.ndarray) -> None:
    before = client.get("/v2/models/digits/stats").json["model_stats"][0]
    client.post(INFER, infer_document(digits[:5]))
    after = client.get("/v2/models/stats").json["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1


def test_metrics_have_a_series_for_each_route(client: Client, digits: np.ndarray) -> None:
    name, route = "http_server_request_duration_seconds_count", "/v2/models/{model}[/versions/{version}]/infer"
    before = client.service.series()
    client.post(INFER, infer_document(digits[:1]))
    client.post(INFER, {})
    client.get("/v2/nothing/here")
    client.request("PROPFIND", "/v2/nothing/here")
    after = client.service.series()
    for labels in (("POST", "200", route), ("POST", "400", route), ("GET", "404", ""), ("_OTHER", "404", "")):
        key = (name, (labels[0], labels[1], labels[2]))
        assert after[key] - before.get(key, 0) == 1
    assert after["http_server_active_requests", ("POST", route)] == 0


PIXELS = np.zeros((1, 784), np.uint8)
TENSOR: dict[str, Any] = infer_document(PIXELS)["inputs"][0]


def with_tensor(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{**TENSOR, **fields}]}


AS_GRPC = {
    "no input": ({}, "inputs: are 0 (none); expected one, 'pixels'"),
    "another input": (with_tensor(name="picture"), "inputs: are 1 ('picture'); expected one, 'pixels'"),
    "two inputs": ({"inputs": [TENSOR, TENSOR]}, "inputs: are 2 ('pixels', 'pixels'); expected one, 'pixels'"),
    "datatype": (with_tensor(datatype="INT8"), "pixels: has datatype 'INT8'; expected 'UINT8' or 'FP32'"),
    "no shape": (with_tensor(shape=[]), "pixels: has shape []; expected [n, 784], n from 1 to 64"),
    "shape": (with_tensor(shape=[1, 28, 28]), "pixels: has shape [1, 28, 28]; expected [n, 784], n from 1 to 64"),
    "too many images": (with_tensor(shape=[65, 784]), "pixels: has shape [65, 784]; expected [n, 784], n from 1 to 64"),
    "too few values": (
        with_tensor(data=[0] * 783),
        "pixels: has 783 values in uint_contents; expected 784 for shape [1, 784]",
    ),
    "no values": (with_tensor(data=[]), "pixels: has 0 values in uint_contents; expected 784 for shape [1, 784]"),
    "not a byte": (with_tensor(data=[256] * 784), "pixels: has the value 256; expected UINT8, 0 to 255"),
    "not 0 to 1": (
        with_tensor(datatype="FP32", data=[2.0] * 784),
        "pixels: has the value 2.0; expected FP32 pixels from 0 to 1; divide by 255, or send UINT8",
    ),
    "output": (
        {**infer_document(PIXELS), "outputs": [{"name": "softmax"}]},
        "outputs: has 'softmax'; expected some of activations, digit, layer1, layer2",
    ),
    "output twice": (
        {**infer_document(PIXELS), "outputs": [{"name": "digit"}, {"name": "digit"}]},
        "outputs: names an output twice; expected each at most once",
    ),
    "classification": (
        {**infer_document(PIXELS), "outputs": [{"name": "digit", "parameters": {"classification": 3}}]},
        "digit: classification (classification) is not supported by this server",
    ),
    "shared memory": (
        with_tensor(parameters={"shared_memory_region": "r"}),
        f"pixels: shared memory (shared_memory_region) {UNAVAILABLE}",
    ),
    "timeout": (
        {**infer_document(PIXELS), "parameters": {"timeout": "soon"}},
        "timeout: is 'soon'; expected microseconds, an int64 of at least 0",
    ),
}
"""Invalid requests that gRPC's messages can express too, with the error of both."""


def as_message(document: dict[str, Any]) -> pb.ModelInferRequest:
    """Return the same request as a message of gRPC."""
    message = pb.ModelInferRequest(model_name="digits")
    for one in document.get("inputs", []):
        tensor = message.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        contents = {"UINT8": "uint_contents", "FP32": "fp32_contents"}.get(one["datatype"])
        if contents:
            getattr(tensor.contents, contents).extend(one["data"])
        for key, value in one.get("parameters", {}).items():
            tensor.parameters[key].string_param = value
    for one in document.get("outputs", []):
        output = message.outputs.add(name=one["name"])
        for key, value in one.get("parameters", {}).items():
            output.parameters[key].int64_param = value
    for key, value in document.get("parameters", {}).items():
        message.parameters[key].string_param = value
    return message


@pytest.mark.parametrize("name", AS_GRPC)
def test_an_invalid_request_gets_the_error_of_grpc(client: Client, stub: GRPCInferenceServiceStub, name: str) -> None:
    document, message = AS_GRPC[name]
    reply = client.post(INFER, document)
    assert (reply.status, reply.json) == (400, {"error": message})
    with pytest.raises(grpc.RpcError) as rejected:
        stub.ModelInfer(as_message(document))
    assert rejected.value.details() == message


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/stats"])
def test_an_unknown_model_or_version_is_not_found(client: Client, path: str) -> None:
    for model, message in (
        ("letters", "model_name: there is no model 'letters'; 'digits' serves"),
        ("digits/versions/9", "model_version: there is no version '9'; '1' serves"),
    ):
        reply = client.get(f"/v2/models/{model}{path}")
        assert (reply.status, reply.json) == (404, {"error": message})
    reply = client.post("/v2/models/letters/infer", infer_document(PIXELS))
    assert (reply.status, reply.json["error"]) == (404, "model_name: there is no model 'letters'; 'digits' serves")


BAD_BODIES = {
    "empty": (b"", "body: is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
    "not UTF-8": (b'{"id": "\xff"}', "body: is not valid JSON: 'utf-8' codec can't decode byte 0xff in position 8"),
    "NaN": (b'{"id": NaN}', "body: is not valid JSON: NaN is not a JSON number"),
    "a huge number": (b'{"id": ' + b"9" * 5000 + b"}", "body: is not valid JSON: Exceeds the limit"),
    "deep": (b"[" * 100_000, "body: is not valid JSON: it is nested too deeply"),
    "an array": (b"[]", "body: is an array; expected an object"),
    "id": ({"id": 7}, "id: is an integer; expected a string"),
    "inputs": ({"inputs": {}}, "inputs: is an object; expected an array"),
    "an input": ({"inputs": [7]}, "inputs: is an integer; expected an object"),
    "name": (with_tensor(name=7), "inputs.name: is an integer; expected a string"),
    "shape": (with_tensor(shape=[1.5, 784]), "inputs.shape: has an element that is not an integer of 64 bits"),
    "large shape": (with_tensor(shape=[2**63]), "inputs.shape: has an element that is not an integer of 64 bits"),
    "data": (with_tensor(data="AAAA"), "inputs.data: is a string; expected an array"),
    "text in data": (with_tensor(data=["7"]), "pixels: has data that is not UINT8"),
    "negative": (with_tensor(data=[-1]), "pixels: has data that is not UINT8"),
    "uneven": (
        with_tensor(data=[[1], 2]),
        "pixels: mixes numbers and arrays; expected numbers, or arrays of one depth",
    ),
    "many dimensions": (with_tensor(data=[[[[[[[[[1]]]]]]]]]), "pixels: has more than 8 dimensions"),
    "parameters": ({"parameters": {"a": [1]}}, "parameters: has a value that is not a string, number or boolean"),
    "binary output": ({"parameters": {"binary_data_output": 1}}, "parameters.binary_data_output: is an integer"),
    "no binary data": (
        with_tensor(parameters={"binary_data_size": 784}),
        "binary_data_size: is 784; expected at most the 0 bytes in the body",
    ),
    "binary size": (
        with_tensor(parameters={"binary_data_size": "784"}),
        "inputs.parameters.binary_data_size: is a string; expected an integer",
    ),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_gets_an_error_that_names_its_field(client: Client, name: str) -> None:
    document, message = BAD_BODIES[name]
    reply = client.post(INFER, document)
    assert reply.status == 400
    assert reply.json["error"].startswith(message)
    assert len(reply.json["error"]) < 300
    assert client.get("/v2/health/live").status == 200, "the connection serves the next request"


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"content-encoding": "br"}, b"x", 415, "content-encoding: 'br' is unsupported; expected gzip or deflate"),
        ({"content-encoding": "gzip"}, b"x", 400, "body: is not valid gzip or deflate data"),
        (
            {"content-encoding": "gzip"},
            gzip.compress(b"{}", mtime=0)[:-4],
            400,
            "body: is not valid gzip or deflate data",
        ),
        ({"content-encoding": "gzip"}, gzip.compress(bytes(2**28), mtime=0), 413, "body: has more than"),
        (
            {},
            b" " * (2 * 2**20 + 1),
            413,
            "body: has 2097153 bytes; expected at most 2097152",
        ),
        ({}, bytes(2**22), 413, "body: has 4194304 bytes; expected at most 2097152"),
        ({"inference-header-content-length": "x"}, b"{}", 400, "inference-header-content-length: is 'x'; expected"),
        ({"inference-header-content-length": "3"}, b"{}", 400, "inference-header-content-length: is '3'; expected"),
        ({"inference-header-content-length": "2"}, b"{}AAA", 400, "body: has 3 bytes after its tensors"),
    ],
)
def test_headers_that_do_not_fit_the_body(
    client: Client, headers: dict[str, str], body: bytes, status: int, message: str
) -> None:
    reply = client.post(INFER, body, **headers)
    assert (reply.status, reply.json["error"][: len(message)]) == (status, message)


def test_json_is_limited_below_the_largest_batch(model_path: Path) -> None:
    with serving_http(model_path, "--max-batch-size", "1024") as client:
        reply = client.post(INFER, b" " * (2**21 + 1))
    message = "body: has 2097153 JSON bytes; expected at most 2097152; send larger batches as binary tensors"
    assert (reply.status, reply.json) == (413, {"error": message})


def test_headers_are_limited_as_in_grpc(client: Client) -> None:
    reply = client.get("/v2", **{"x-large": "a" * 16_384})
    assert reply.status == 431
    assert reply.json["error"].startswith("headers: have more than 16384 bytes")


def test_a_chunked_body_is_limited_too(client: Client) -> None:
    chunks = (bytes(2**20) for _ in range(4))
    client.connection.request("POST", INFER, chunks, {"transfer-encoding": "chunked"}, encode_chunked=True)
    response = client.connection.getresponse()
    reply = Reply(response.status, {}, response.read())
    assert (reply.status, reply.json["error"]) == (
        413,
        "body: has more than 2097152 bytes; expected at most 2097152",
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", INFER, 405, "POST"),
        ("POST", "/v2/models/digits", 405, "GET"),
        ("DELETE", "/v1/predict", 405, "POST"),
        ("GET", "/", 404, None),
        ("GET", "/v2/models/digits/versions", 404, None),
        ("GET", "/v2/models/%ff", 404, None),
    ],
)
def test_unknown_paths_and_methods(client: Client, method: str, path: str, status: int, allow: str | None) -> None:
    reply = client.request(method, path)
    assert (reply.status, reply.headers.get("allow")) == (status, allow)
    assert reply.json["error"]


def test_an_expired_timeout_is_a_gateway_timeout(client: Client, digits: np.ndarray) -> None:
    document = infer_document(digits[:64], parameters={"timeout": 1})
    reply = client.post(INFER, document)
    assert (reply.status, reply.json) == (504, {"error": "the deadline passed before the model could run"})
    reply = client.post("/v1/predict?timeout=1", digits[:64].tolist())
    assert (reply.status, reply.json) == (504, {"error": "the deadline passed before the model could run"})


@pytest.mark.parametrize("value", ["soon", "-1", "0.5", "9" * 19, "٣"])
def test_an_invalid_timeout_is_named(client: Client, digits: np.ndarray, value: str) -> None:
    reply = client.post(f"/v1/predict?{urlencode({'timeout': value})}", digits[:1].tolist())
    message = f"timeout: is {value!r}; expected microseconds, an integer of at least 0"
    assert (reply.status, reply.json) == (400, {"error": message})


def test_model_control_is_that_of_grpc(client: Client, stub: GRPCInferenceServiceStub) -> None:
    for path, rpc, message in (
        ("load", stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="digits")),
        ("unload", stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="digits")),
    ):
        with pytest.raises(grpc.RpcError) as rejected:
            rpc(message)
        reply = client.post(f"/v2/repository/models/digits/{path}", {})
        assert (reply.status, reply.json) == (501, {"error": rejected.value.details()})


class TestPredict:
    """`POST /v1/predict`."""

    @pytest.mark.parametrize("form", ["one row", "rows", "squares", "object"])
    def test_rows_of_pixels(self, client: Client, digits: np.ndarray, labels: np.ndarray, form: str) -> None:
        pixels, expected = digits[70:73], labels[70:73].tolist()
        documents: dict[str, Any] = {
            "one row": pixels[0].tolist(),
            "rows": pixels.tolist(),
            "squares": pixels.reshape(-1, 28, 28).tolist(),
            "object": {"pixels": pixels.tolist(), "include_hidden_layers": True, "model_version": "1"},
        }
        reply = client.post("/v1/predict", documents[form])
        assert reply.status == 200
        assert reply.json["digits"] == (expected[:1] if form == "one row" else expected)
        assert len(reply.json["activations"][0]) == 10
        assert reply.json["model_version"] == "1"
        assert ("layer1" in reply.json) == (form == "object")

    def test_each_answer_has_its_reliability(self, client: Client, digits: np.ndarray) -> None:
        inverted = 255 - digits[70]
        reply = client.post("/v1/predict", [digits[70].tolist(), inverted.tolist()])
        assert reply.json["sure"] == [True, False]
        assert reply.json["warnings"][0] == []
        assert reply.json["warnings"][1][0].startswith("pixels: not in MNIST's form; expected")
        assert reply.json["in_distribution"][0] > 0.5
        assert reply.json["in_distribution"][1] == 0
        ordered = np.argsort(-np.array(reply.json["activations"]), axis=1, kind="stable")
        assert reply.json["second"] == ordered[:, 1].tolist()

    def test_a_picture_has_the_warnings_of_the_client(self, client: Client) -> None:
        file = io.BytesIO()
        picture = draw_digits([4, 7])
        picture.save(file, "PNG")
        reply = client.post("/v1/predict", file.getvalue(), **{"content-type": "image/png"})
        assert "picture: 2 digits side by side; expected one, or --each" in reply.json["warnings"][0]
        assert reply.json["sure"] == [False]

    @pytest.mark.parametrize("form", ["multipart", "raw"])
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_pictures(self, client: Client, digits: np.ndarray, labels: np.ndarray, form: str, kind: str) -> None:
        file = io.BytesIO()
        Image.fromarray(255 - digits[70].reshape(28, 28)).resize((280, 280)).save(file, kind)
        if form == "raw":
            body, content_type = file.getvalue(), f"image/{kind.lower()}"
        else:
            body, content_type = multipart(file.getvalue(), file.getvalue()), "multipart/form-data; boundary=XX"
        reply = client.post("/v1/predict", body, **{"content-type": content_type})
        assert reply.status == 200, reply.body
        assert reply.json["digits"] == [labels[70]] * (1 if form == "raw" else 2)

    @pytest.mark.parametrize(
        ("content_type", "body", "status", "message"),
        [
            ("application/json", b"7", 400, "body: is an integer; expected an array of pixels"),
            ("application/json", b"[]", 400, "pixels: is empty; expected n x 784 bytes, n at least 1"),
            ("application/json", b"[1,2]", 400, "pixels: holds 2 bytes; expected a multiple of 784"),
            ("application/json", b"[0.5]", 400, "pixels: has the value 0.5; expected integers from 0 to 255"),
            ("application/json", b"[256]", 400, "pixels: has the value 256; expected integers from 0 to 255"),
            ("application/json", b"[true]", 400, "pixels: has the value a boolean; expected integers from 0 to 255"),
            ("application/json", b'{"pixels": 7}', 400, "pixels: is an integer; expected an array"),
            ("text/plain", b"7", 415, "content-type: 'text/plain' is unsupported; expected application/json, "),
            ("", b"7", 415, "content-type: '' is unsupported; expected application/json, "),
            ("image/png", b"", 400, "file: is empty; expected a picture"),
            ("image/png", b"not a picture", 400, "file: is no picture"),
            ("multipart/form-data", b"", 400, "content-type: has no boundary"),
            ("multipart/form-data; boundary=XX", b"", 400, "body: is not multipart/form-data"),
            ("multipart/form-data; boundary=XX", b"--XX--\r\n", 400, "body: has no file"),
            ("multipart/form-data; boundary=XX", b"--XX\r\nno header\r\n--XX--", 400, "body: has a part without"),
            ("multipart/form-data; boundary=XX", b"--XX\r\n\r\nx" + b"\r\n--XX\r\n\r\nx" * 70, 400, "body: is not"),
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain"])
    def test_bad_input(
        self, client: Client, path: str, content_type: str, body: bytes, status: int, message: str
    ) -> None:
        reply = client.post(path, body, **{"content-type": content_type})
        assert (reply.status, reply.json["error"][: len(message)]) == (status, message)

    def test_a_large_picture_is_rejected_by_its_header(self, client: Client) -> None:
        file = io.BytesIO()
        Image.new("1", (9000, 9000)).save(file, "PNG")
        reply = client.post("/v1/predict", file.getvalue(), **{"content-type": "image/png"})
        assert (reply.status, reply.json["error"]) == (
            400,
            "file: has 9000 x 9000 pixels; expected at most 25,000,000",
        )


def multipart(*files: bytes) -> bytes:
    """Encode files as curl -F does."""
    header = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(header + file + b"\r\n" for file in files) + b"--XX--\r\n"


def test_the_http_port_is_off_by_default(model_path: Path) -> None:
    with serving(model_path) as service:
        assert all("http" not in line for line in service.lines if line["event"] == "serving")


@pytest.mark.parametrize("missing", ["uvicorn", "digitserve_client"])
def test_a_missing_extra_is_named(model_path: Path, tmp_path: Path, digits: np.ndarray, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not installed')")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    arguments = ("--model", model_path, "--port", "0", "--metrics-port", "0", "--http-port", "0")
    service = launch(*arguments, env=path)
    try:
        if missing == "uvicorn":
            assert service.ended() == 1
            assert "--http-port (or DIGITS_HTTP_PORT) needs the extra `http`" in service.lines[-1]["reason"]
            return
        service.wait_for("serving")
        client = Client(service)
        reply = client.post("/v1/predict", b"x", **{"content-type": "image/png"})
        assert reply.status == 501
        assert "install `digitserve-client[image]`" in reply.json["error"]
        assert client.post("/v1/predict", digits[:1].tolist()).status == 200
        client.connection.close()
    finally:
        service.close()
