"""Servers for tests: a real one on loopback, over a small model or over an engine that pretends."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
import uvicorn

from equilm.decode.engine import Counts, Engine
from equilm.decode.request import Event, Request, Token
from equilm.decode.server.app import Service, build_app
from equilm.decode.server.settings import Limits, ServerConfig
from equilm.decode.server.worker import Engine as AnyEngine
from equilm.decode.text import Bytes, Tokenizer
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig


def language_model(vocab_size: int = 256) -> LanguageModel:
    """Build a random model over bytes, in evaluation mode, each token with one fixed point."""
    config = ModelConfig(
        vocab_size=vocab_size,
        width=32,
        num_layers=1,
        mixer=Mamba2Config(head_width=16, state_size=8),
        weight_norm=True,
        equilibrium=EquilibriumConfig(),
    )
    model = LanguageModel(config, generator=torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        # A small state against a large injection: F hardly depends on z.
        assert isinstance(model.core, Equilibrium)
        for name, parameter in model.core.body.named_parameters():
            if name.endswith(("norm_f.weight", "in_proj.weight_g")):
                parameter.mul_(0.3)
        # Initial embeddings are small, and every byte would be as likely as any other.
        model.embedding.mul_(60)
    return model


@dataclass
class Pretender:
    """An engine whose answer is the alphabet from the prompt's last byte on.

    Args:
        slots: Answers at once.
        seconds: That a step takes.
        fails_at: The byte at which it breaks.
    """

    slots: int = 4
    seconds: float = 0.0
    fails_at: int | None = None
    capacity: int | None = 100
    active: dict[int, Request] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)
    made: int = 0

    @property
    def busy(self) -> bool:
        return bool(self.active)

    @property
    def counts(self) -> Counts:
        running = min(len(self.active), self.slots)
        waiting = len(self.active) - running
        return Counts(waiting, 0, running, self.slots, self.made, 0, 0, 0, 0, 0)

    def submit(self, request: Request) -> int:
        if not all(0 <= token < 256 for token in request.prompt):
            raise ValueError("prompt: expected ids in [0, 256)")
        length = len(request.prompt) + request.max_tokens
        if self.capacity is not None and length > self.capacity:
            raise ValueError(f"prompt and max_tokens: expected at most {self.capacity} tokens")
        self.made += 1
        self.active[self.made], self.told[self.made] = request, 0
        return self.made

    def cancel(self, request_id: int) -> None:
        self.active.pop(request_id, None)

    def step(self) -> list[Event]:
        time.sleep(self.seconds)
        events = []
        for number, request in list(self.active.items())[: self.slots]:
            self.told[number] += 1
            byte = (request.prompt[-1] + self.told[number]) % 256
            if byte == self.fails_at:
                raise RuntimeError("the engine broke")
            ends = self.told[number] == request.max_tokens
            token = Token(byte, self.told[number], "converged", residuals=(0.5, 0.001))
            events.append(Event(number, token, "length" if ends else None))
            if ends:
                del self.active[number]
        return events


@dataclass
class Running:
    """A server that can be asked."""

    url: str
    service: Service
    server: uvicorn.Server
    thread: threading.Thread

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)

    def settles(self, seconds: float = 5) -> bool:
        """Whether nothing is open any more, in the server or the engine, soon."""
        ends = time.monotonic() + seconds
        engine = self.service.worker.engine
        while time.monotonic() < ends:
            if not self.service.worker.num_open and not engine.busy:
                return True
            time.sleep(0.01)
        return False


@contextmanager
def running(
    engine: AnyEngine | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    api_key: str | None = None,
    **limits: float,
) -> Iterator[Running]:
    """Run a server on loopback in a thread of its own."""
    given = Limits(**limits)  # type: ignore[arg-type]
    config = ServerConfig(port=0, name="tiny", api_key=api_key, limits=given)
    engine = engine or Engine(language_model(), slots=4, capacity=512, prefix_cache=4)
    app = build_app(engine, tokenizer or Bytes(), config)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2, lifespan="on")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield Running(url, app.state.service, server, thread)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def serving(
    folder: Path, *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `equilm serve` as a user would; yield the process and its address."""
    command = [sys.executable, "-W", "error", "-c", "from equilm.cli import main; main()"]
    command += ["serve", str(folder), "--tokenizer", "bytes", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        line = next((line for line in lines if " at http" in line), "")
        yield process, line.partition(" at ")[2].partition(";")[0]
    finally:
        process.kill()
        process.communicate()
