"""The endpoint, as clients meet it: the well-behaved one, and all the others."""

import json
import random
import socket
import time

import msgspec
import numpy as np
import pytest
import torch
from support.serving import MODEL, images, local_answer, post, serving

from hw.serving import http
from hw.serving import open_inference as v2
from hw.serving.app import ServeConfig, open_service
from hw.serving.http import Endpoint
from prism.decide.log import Decided, read_decisions
from prism.decide.policy import PrismPolicy
from prism.errors import ConfigError, InputError, PrismError


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("http"), key_file="") as found:
        yield found


def body(x: torch.Tensor, **more) -> bytes:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.flatten().tolist()}
    return json.dumps({"id": "7", "inputs": [{**tensor, **more}]}).encode()


@pytest.mark.parametrize("binary", [True, False])
def test_an_existing_client_gets_predictions(service, binary):
    client = pytest.importorskip("tritonclient.http")
    x = images(3)
    with client.InferenceServerClient(f"127.0.0.1:{service.server.port}") as triton:
        assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready(MODEL)
        (described,) = triton.get_model_metadata(MODEL)["inputs"]
        given = client.InferInput(described["name"], list(x.shape), described["datatype"])
        given.set_data_from_numpy(x.numpy(), binary_data=binary)
        wanted = client.InferRequestedOutput("logits", binary_data=binary)
        answer = triton.infer(MODEL, [given], outputs=[wanted], request_id="9")
    np.testing.assert_allclose(answer.as_numpy("logits"), local_answer(service, x).numpy(), rtol=1e-4, atol=1e-4)
    assert answer.get_response()["id"] == "9"
    assert answer.get_response()["parameters"]["mode"] == "local"


def test_requests_that_come_together_are_answered_apart(tmp_path):
    with serving(tmp_path, key_file="", max_batch=8, max_wait_s=0.5) as service:
        x = images(4)
        futures = [service.batcher.submit({"x": x[k : k + 1]}) for k in range(4)]
        futures.append(service.batcher.submit({"x": images(8)[4:]}))
        rows = torch.cat([future.result(20).outputs["logits"] for future in futures])
        torch.testing.assert_close(rows, local_answer(service, images(8)), rtol=1e-4, atol=1e-4)
        assert service.runtime.served == {"local": 1}


def test_a_deadline_reaches_the_policy(tmp_path):
    log = tmp_path / "log"
    fields = dict(key_file="", policy=PrismPolicy(), decisions=str(log), deadline_s=0.05, learn=False)
    with serving(tmp_path, **fields) as service:  # by the map, local takes 100 ms
        assert post(service, body(images(1)))[0] == 200
    (entry,) = (each for each in read_decisions(log).entries if isinstance(each, Decided))
    assert 0 <= entry.observation.left_ms <= 50
    assert "no plan keeps the constraints" in entry.why


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"{", 400, "no v2 inference request"),
        (b"{}", 400, "inputs"),
        (body(torch.zeros(1, 1, 28, 28), name="y"), 400, "unknown; the model takes x"),
        (body(torch.zeros(1, 1, 28, 28), datatype="BF16"), 400, "datatype 'BF16' is unknown"),
        (body(torch.zeros(1, 1, 28, 28), datatype="FP64"), 400, "the model takes FP32"),
        (body(torch.zeros(1, 3, 28, 28)), 400, "the model takes"),
        (body(torch.zeros(1, 1, 28, 28), shape=[2, 1, 28, 28]), 400, "is not FP32 of shape"),
        (body(torch.zeros(1, 1, 28, 28), shape=[0, 1, 28, 28], data=[]), 400, "shape [0"),
        (body(torch.zeros(1, 1, 28, 28), parameters={"binary_data_size": 10**9}), 400, "bytes left"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(service, sent, status, said):
    got, answer = post(service, sent)
    assert got == status and said in answer["error"]


def test_another_model_and_a_body_that_is_too_large(tmp_path):
    assert Endpoint().most_bytes == 64 << 20
    with serving(tmp_path, key_file="") as service:
        assert post(service, b"{}", path="/v2/models/other/infer")[0] == 404
        with socket.create_connection(("127.0.0.1", service.server.port), timeout=20) as sock:
            sock.sendall(
                f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {65 << 20}\r\n\r\n".encode()
            )
            chunk, got = bytes(1 << 20), b""
            try:
                for _ in range(65):
                    sock.sendall(chunk)
            except OSError:
                pass  # it answered before it had all
            got = sock.recv(64)
        assert b" 413 " in got


def test_the_slow_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "HEAD_S", 0.5)
    monkeypatch.setattr(http, "BODY_S", 0.5)
    with serving(tmp_path, key_file="") as service:
        for begun in (
            b"POST /v2/mod",
            f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode(),
        ):
            with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as sock:
                started = time.monotonic()
                sock.sendall(begun)
                assert b" 408 " in sock.recv(256)
                assert time.monotonic() - started < 5


def test_a_token_is_asked_for(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with serving(tmp_path, key_file="", token_file=str(tmp_path / "token")) as service:
        x = body(images(1))
        assert post(service, x)[0] == 401
        assert post(service, x, {"Authorization": "Bearer wrong"})[0] == 401
        assert post(service, x, {"Authorization": "Bearer secret"})[0] == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"http_address": "0.0.0.0"}, "every interface"),
        ({"http_address": "10.1.2.3"}, "a token is needed"),
        ({"http_address": "somewhere"}, "no IP address"),
        ({"map": ""}, "no map"),
        ({"token_file": "/no/such/file"}, "can't be read"),
        ({"memory": "8"}, "has the unit 'none'"),
        ({"memory": "500kB"}, r"local: rank 0 needs [\d.]+ MB .*, the limit is 500 kB"),
    ],
)
def test_what_is_open_to_anybody_or_missing_is_refused(tmp_path, fields, said):
    with pytest.raises(PrismError, match=said), serving(tmp_path, **{"key_file": "", **fields}):
        pass


def test_a_key_that_others_can_read_or_guess_is_refused(tmp_path):
    for text, mode, said in (("short", 0o600, "at least 16"), ("long enough to be a key", 0o644, "chmod 600")):
        (tmp_path / "key").write_text(text)
        (tmp_path / "key").chmod(mode)
        from support.serving import map_file

        with (
            pytest.raises(ConfigError, match=said),
            open_service(ServeConfig(map=map_file(tmp_path), key_file=str(tmp_path / "key"), http_port=0), "test"),
        ):
            pass


def test_metrics_say_what_was_served(service):
    post(service, body(images(1)))
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = b""
        while more := sock.recv(4096):
            got += more
    assert b'prism_batches_total{mode="local"}' in got and b"prism_devices 1.0" in got


def test_fuzzed_requests_are_refused_and_nothing_else():
    """10,000 mutations of a good request, parsed as the endpoint does: a tensor or an InputError, no other end."""
    rng, good = random.Random(0), body(torch.zeros(1, 1, 4, 4))
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    refused = 0
    for _ in range(10_000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(raw))
            if rng.random() < 0.5:
                raw[place] = rng.randrange(256)
            else:
                raw[place : place + rng.randint(0, 9)] = rng.choice(
                    [b"", b"[" * 50, b"-1", b"1e400", b"null", b"99999999999"]
                )
        try:
            _, tensors = v2.parse(bytes(raw), rng.choice([None, len(raw), rng.randint(0, 2 * len(raw))]))
            assert v2.checked(tensors, inputs)["x"].shape[1:] == (1, 4, 4)
        except InputError:
            refused += 1
    assert 5_000 < refused < 10_000


def test_outputs_are_those_that_were_asked_for():
    request = v2.InferRequest(inputs=[], outputs=[v2.OutputTensor(name="nothing")])
    with pytest.raises(InputError, match="unknown; the model gives logits"):
        v2.render("m", request, {"logits": torch.zeros(1, 2)}, {})
    plain, size = v2.render("m", v2.InferRequest(inputs=[]), {"logits": torch.ones(1, 2)}, {})
    assert size is None and msgspec.json.decode(plain)["outputs"][0]["data"] == [1.0, 1.0]
