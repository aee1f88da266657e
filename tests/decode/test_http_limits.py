"""What the server refuses, how it says so, and whom it lets in."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.decode.http_server import Pretender, Running, running

ASK = {"prompt": "a", "max_tokens": 3}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Pretender(), max_prompt=50, max_answer=40, max_body_bytes=2000) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error, after checking that it has OpenAI's shape."""
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def test_an_answer(client: httpx.Client) -> None:
    reply = client.post("/v1/completions", json=ASK)
    assert reply.json()["choices"][0]["text"] == "bcd"
    assert reply.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"prompt": 3}, "prompt", "expected a string, a list of strings, token ids or"),
        ({"prompt": []}, "prompt", "expected a string, a list"),
        ({"prompt": [[1], []]}, "prompt", "expected a string, a list"),
        ({"prompt": [True]}, "prompt", "expected a string, a list"),
        ({"prompt": "\ud800"}, "prompt", "surrogates not allowed"),
        ({"prompt": "a" * 51}, "prompt", "expected at most 50 tokens, got 51"),
        ({"max_tokens": 41}, "max_tokens", "expected at most 40, got 41"),
        ({"max_tokens": "3"}, "max_tokens", "max_tokens: expected an integer, got '3'"),
        ({"max_tokens": 0}, "max_tokens", "or echo"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": 10**30}, "top_k", "less than or equal to"),
        ({"seed": 2**63}, "seed", "less than or equal to"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"n": 100}, "n", "at most 68 answers at once"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"stop": ["a", ""]}, "stop", "none of them empty"),
        ({"stop": 3}, "stop", "expected a string or a list"),
        (
            {"solver": {"tolerance": -1}},
            "solver",
            "solver.tolerance: expected a number greater than or equal to 0",
        ),
        ({"solver": {"tolerance": 1e300}}, "solver", "less than or equal to 1"),
        ({"solver": {"max_steps": 1001}}, "solver", "max_steps: expected at most 1000, got 1001"),
        (
            {"solver": {"max_step": 1}},
            "solver",
            "unknown field 'max_step'; did you mean `max_steps`",
        ),
        ({"solver": {"tol": 1}}, "solver", "choose from: max_steps, tolerance"),
        ({"solver": 3}, "solver", "solver: expected "),
        ({"stream": "yes"}, "stream", "stream: expected a boolean, got 'yes'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "expected stream"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported here"),
        ({"best_of": 3}, "best_of", "not supported here"),
        ({"temprature": 1}, "temprature", "did you mean `temperature`?"),
        ({"x" * 200: 1}, "x" * 100, "unknown field"),
        ({"\ud800": 1}, None, "body: expected a JSON object"),
    ],
)
def test_a_field_that_is_wrong_is_named(
    change: dict[str, Any], param: str | None, told: str, client: httpx.Client
) -> None:
    body = json.dumps(ASK | change)  # keeps half a surrogate pair, which the client's own would not
    error = error_of(client.post("/v1/completions", content=body, headers=JSON), 400)
    assert told in error["message"] and error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"user": "me", "store": True, "metadata": {"a": "b"}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1},
        {"temperature": None, "n": None, "stop": None, "stream": None, "seed": None},
        {"suffix": None, "logprobs": None, "stream_options": None, "model": None},
    ],
)
def test_what_asks_for_nothing_is_taken(change: dict[str, Any], client: httpx.Client) -> None:
    assert client.post("/v1/completions", json=ASK | change).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{", "expected JSON"),
        ("", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ("[" * 900, "body: expected JSON"),
        ('{"prompt": NaN}', "prompt"),
        ('{"prompt": "a", "temperature": NaN}', "temperature"),
        ('{"prompt": "a", "temperature": 1e999}', "temperature"),
        ('{"prompt": [1' + "0" * 500 + "]}", "prompt"),
        ('"\xff"', "body: expected JSON in UTF-8"),
    ],
)
def test_a_body_that_is_none(body: str, told: str, client: httpx.Client) -> None:
    reply = client.post("/v1/completions", content=body.encode("latin-1"), headers=JSON)
    assert told in error_of(reply, 400)["message"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages.0"),
        ({"role": "user", "content": "a", "tool_calls": [1]}, "expected role and content alone"),
        ({"role": "user", "content": "a", "name": "Ann"}, "a chat template, got bytes"),
    ],
)
def test_a_message_that_is_wrong(message: object, told: str, client: httpx.Client) -> None:
    reply = client.post("/v1/chat/completions", json={"messages": [message]})
    error = error_of(reply, 400)
    assert told in error["message"] and error["param"] == "messages"


def test_what_the_engine_refuses(client: httpx.Client) -> None:
    with running(Pretender(capacity=10)) as server, server.client() as narrow:
        reply = narrow.post("/v1/completions", json=ASK | {"max_tokens": 10})
        assert "at most 10 tokens" in error_of(reply, 400)["message"]
        assert server.settles()


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert error_of(client.get("/v2"), 404)["type"] == "invalid_request_error"
    assert error_of(client.get("/v1/completions"), 405)
    assert error_of(client.get("/docs"), 404) and error_of(client.get("/openapi.json"), 404)


def test_only_json_is_taken_for_json(client: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = client.post(
            "/v1/completions", content=json.dumps(ASK), headers={"content-type": kind}
        )
        assert "expected application/json" in error_of(reply, 415)["message"]
    reply = client.options("/v1/completions", headers={"origin": "http://elsewhere"})
    assert reply.status_code == 405 and "access-control-allow-origin" not in reply.headers


def test_a_body_that_is_too_large(client: httpx.Client, server: Running) -> None:
    large = json.dumps(ASK | {"stop": "x" * 3000})
    reply = client.post("/v1/completions", content=large, headers=JSON)
    assert "at most 2,000 bytes" in error_of(reply, 413)["message"]

    def pieces() -> Iterator[bytes]:  # without a length that would tell
        yield from (large[start : start + 500].encode() for start in range(0, len(large), 500))

    reply = client.post("/v1/completions", content=pieces(), headers=JSON)
    assert "at most 2,000 bytes" in error_of(reply, 413)["message"]
    assert client.post("/v1/completions", json=ASK).status_code == 200


def test_a_name_that_points_here_is_not_enough(client: httpx.Client) -> None:
    for path in ("/", "/v1/models", "/metrics"):
        error = error_of(client.get(path, headers={"host": "evil.example:80"}), 403)
        assert error["type"] == "permission_error"
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_the_key_opens_everything_and_nothing_else_does() -> None:
    with running(Pretender(), api_key="s3cret") as server, server.client() as client:
        basic = base64.b64encode(b"anyone:s3cret").decode()
        for given in ("Bearer s3cret", "bearer s3cret", f"Basic {basic}"):
            headers = {"authorization": given, "host": "somewhere.example"}
            for path in ("/", "/v1/models", "/metrics"):
                assert client.get(path, headers=headers).status_code == 200
            assert client.post("/v1/completions", json=ASK, headers=headers).status_code == 200
        wrong = base64.b64encode(b"s3cret:").decode()
        for given in ("", "s3cret", "Bearer", "Bearer s3cre", "Bearer s3crets", "Token s3cret",
                      f"Basic {wrong}", "Basic %%%", "Basic s3cret", "Bearer \xe9"):  # fmt: skip
            headers = {"authorization": given.encode("latin-1")}  # type: ignore[dict-item]
            for path in ("/", "/v1/models", "/metrics", "/nowhere"):
                reply = client.get(path, headers=headers)
                assert error_of(reply, 401)["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"].startswith("Basic ")
        assert client.get("/health").json() == {"status": "ok"}


def test_the_queue_is_limited_and_says_when_to_come_again() -> None:
    with (
        running(Pretender(slots=1, seconds=0.05), max_queue=1) as server,
        server.client() as client,
    ):
        both = ASK | {"max_tokens": 90, "stream": True, "n": 2}
        with client.stream("POST", "/v1/completions", json=both) as reply:
            lines = reply.iter_lines()
            next(lines)  # kept: a generator that is dropped hangs up
            refused = client_of_its_own(server, ASK)
            assert error_of(refused, 429)["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
        assert server.settles()
        assert client_of_its_own(server, ASK).status_code == 200


def client_of_its_own(server: Running, body: object) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(stream: bool) -> None:
    with (
        running(Pretender(seconds=0.05), max_seconds=0.2) as server,
        server.client() as client,
    ):
        reply = client.post("/v1/completions", json=ASK | {"max_tokens": 90, "stream": stream})
        if stream:
            *_, last, done = reply.text.strip().split("\n\n")
            assert reply.status_code == 200 and done == "data: [DONE]"
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            error = error_of(reply, 504)
        assert error["code"] == "timeout" and "0.2 seconds" in error["message"]
        assert server.settles()


def test_a_body_that_never_comes(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilm.decode.server.guard._BODY_SECONDS", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_metrics_count(client: httpx.Client, server: Running) -> None:
    def read(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ('equilm_requests_total{path="/v1/completions",status="200"}',
             "equilm_settled_tokens_total", "equilm_token_steps_count", "equilm_token_steps_sum",
             "equilm_request_seconds_count", "equilm_first_token_seconds_count")  # fmt: skip
    before = [read(name) for name in names]
    client.post("/v1/completions", json=ASK)
    assert [read(name) - was for name, was in zip(names, before, strict=True)] == [1, 3, 3, 6, 1, 1]
    assert read("equilm_slots ") == 4 and read("equilm_open ") == 0
    # Paths that are none of ours are not worth a line each.
    client.get("/nowhere")
    assert read('equilm_requests_total{path="",status="404"}') >= 1
    assert "nowhere" not in client.get("/metrics").text


def test_two_servers_do_not_count_together() -> None:
    with running(Pretender()) as one, running(Pretender()) as other:
        client_of_its_own(one, ASK)
        with other.client() as client:
            assert "equilm_token_steps_count 0.0" in client.get("/metrics").text


def test_nothing_is_left_of_all_this(server: Running) -> None:
    assert server.settles()
    assert sum(thread.name == "equilm-engine" for thread in threading.enumerate()) == 1
