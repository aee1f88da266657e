"""How answers and servers end: hung up on, asked to stop, or broken."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from equilm.decode.engine import Engine
from equilm.decode.server.run import serve
from equilm.decode.server.settings import ServerConfig
from equilm.decode.text import Bytes, tokenizer_of
from equilm.nn.folder import save_model
from tests.decode.http_server import Pretender, Running, language_model, running, serving

LONG = {"prompt": "a", "max_tokens": 90}


@contextmanager
def streaming(server: Running, body: dict[str, object]) -> Iterator[Iterator[str]]:
    """Ask for a stream, yield its lines, and hang up."""
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply,
    ):
        yield reply.iter_lines()


@pytest.mark.parametrize("slots", [1, 4])
def test_hanging_up_on_a_stream_frees_its_slot_at_once(slots: int) -> None:
    with running(Pretender(slots=slots, seconds=0.02)) as server:
        for _ in range(3):
            with streaming(server, LONG) as lines:
                next(lines)
                assert server.service.worker.num_open == 1
            assert server.settles(1)


def test_hanging_up_on_an_answer_frees_its_slot_at_once() -> None:
    with running(Pretender(seconds=0.02)) as server:
        for _ in range(3):
            with server.client() as client, pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=LONG | {"n": 3}, timeout=0.3)
            assert server.settles(1)
        assert server.service.worker.engine.counts.requests == 9


def test_hanging_up_frees_slots_of_the_real_engine() -> None:
    engine = Engine(language_model(), slots=2)
    with running(engine, max_answer=100_000) as server:
        long = LONG | {"max_tokens": 50_000, "n": 3}
        for _ in range(2):
            with streaming(server, long) as lines:
                next(lines)
            assert server.settles()
            with server.client() as client, pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=long, timeout=0.5)
            assert server.settles()
        with server.client() as client:
            assert client.post("/v1/completions", json=LONG).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_breaks_is_told_to_everybody(stream: bool) -> None:
    with (
        running(Pretender(seconds=0.01, fails_at=ord("g"))) as server,
        server.client() as client,
    ):
        assert client.get("/health").status_code == 200
        reply = client.post("/v1/completions", json=LONG | {"stream": stream})
        if stream:
            *_, last, _ = reply.text.strip().split("\n\n")
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            assert reply.status_code == 503
            error = reply.json()["error"]
        assert error["type"] == "server_error" and "engine stopped" in error["message"]
        assert client.get("/health").status_code == 503
        assert client.post("/v1/completions", json=LONG).status_code == 503
        assert server.service.worker.failed and not server.service.worker.num_open


def test_extremes_do_not_break_the_engine() -> None:
    extremes: list[dict[str, object]] = [
        {"temperature": 1e-300},
        {"temperature": 100, "top_p": 1e-300, "min_p": 1, "top_k": 1},
        {"temperature": 1, "top_p": 1, "top_k": 2**31, "min_p": 1e-300},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100, "logprobs": 20, "echo": True},
        {"solver": {"tolerance": 0, "max_steps": 20}},
        {"solver": {"tolerance": 1, "max_steps": 1}, "residuals": True},
        {"solver": {"tolerance": 1e-300, "max_steps": 20}},
        {"seed": -(2**63), "n": 3},
        {"prompt": [255] * 600, "seed": 2**63 - 1},
        {"prompt": ["a"] * 20},
    ]
    with running(max_prompt=1000) as server, server.client() as client:
        for extreme in extremes:
            reply = client.post("/v1/completions", json=LONG | {"max_tokens": 4} | extreme)
            assert reply.status_code == 200, (extreme, reply.text)
            assert all(len(one["token_ids"]) == 4 for one in reply.json()["choices"])
        assert server.settles()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(language_model(), path)
    assert tokenizer_of("", path).encode("3 1") == [3, 1]
    return path


@pytest.mark.multi
def test_a_server_that_is_asked_to_stop_answers_first(folder: Path) -> None:
    said: list[httpx.Response] = []
    with serving(folder, "--max-answer", "100000") as (process, url):
        ask = {"prompt": "a", "max_tokens": 150, "temperature": 0, "model": "tiny"}

        def run() -> None:
            said.append(httpx.post(f"{url}/v1/completions", json=ask, timeout=60))

        asking = threading.Thread(target=run)
        asking.start()
        with httpx.Client(base_url=url) as client:
            wait_for(lambda: "equilm_open 1.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").status_code == 503)
            refused = client.post("/v1/completions", json=ask)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        asking.join()
        assert said[0].status_code == 200 and said[0].json()["usage"]["completion_tokens"] == 150
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.multi
@pytest.mark.parametrize(("grace", "signals"), [("0.5", 1), ("60", 2)])
def test_a_server_does_not_wait_for_ever(grace: str, signals: int, folder: Path) -> None:
    limits = ("--max-answer", "1000000", "--grace-seconds", grace)
    with serving(folder, *limits, EQUILM_API_KEY="k") as (process, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        ask = {"prompt": "a", "max_tokens": 1_000_000, "temperature": 0, "stream": True}
        key = {"authorization": "Bearer k"}
        with httpx.stream("POST", f"{url}/v1/completions", json=ask, headers=key) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            if signals == 2:
                wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
                process.send_signal(signal.SIGINT)
            *_, error, _, done, _ = lines
        assert "engine stopped" in error and done == "data: [DONE]"
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


def test_an_address_that_is_taken() -> None:
    with running(Pretender()) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match=rf"127.0.0.1:{port}: cannot listen there"):
            serve(Pretender(), Bytes(), ServerConfig(port=port))


@pytest.mark.multi
def test_a_server_open_to_all_says_so(folder: Path) -> None:
    with serving(folder, "--host", "0.0.0.0") as (process, url):
        assert httpx.get(f"{url}/v1/models").status_code == 200
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert "0.0.0.0: anybody who can reach it may ask; set EQUILM_API_KEY" in errors


def wait_for(holds: Callable[[], bool], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_settling_can_fail() -> None:
    with running(Pretender(seconds=0.02)) as server, streaming(server, LONG) as lines:
        next(lines)
        assert not server.settles(0.2)
