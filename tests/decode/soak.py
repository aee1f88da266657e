"""Many clients against one server for a while: right answers, hanging up, nonsense, and no leak.

    python -m tests.decode.soak --minutes 10

The server is `equilm serve` in a process of its own, over a small random model. Every complete
answer is compared with what `equilm.generate` says. Exit code 1 if anything was wrong.
"""

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from equilm.decode.generate import Generation, generate
from equilm.decode.request import Sampling
from equilm.decode.text import Bytes
from equilm.nn.folder import save_model
from tests.decode.http_server import language_model, serving

JSON = {"content-type": "application/json"}
NONSENSE: list[tuple[str, str, bytes, int]] = [
    ("POST", "/v1/completions", b"{", 400),
    ("POST", "/v1/completions", b"\xff\xfe", 400),
    ("POST", "/v1/completions", b"[" * 5000, 400),
    ("POST", "/v1/completions", b'{"prompt": [256]}', 400),
    ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": -1}', 400),
    ("POST", "/v1/completions", b'{"prompt": "a", "colour": "red"}', 400),
    ("POST", "/v1/completions", b'{"prompt": "\\ud800"}', 400),
    ("POST", "/v1/completions", b'{"prompt": "a", "model": "gpt-5"}', 404),
    ("POST", "/v1/completions", b'{"prompt": "' + b"a" * 30_000 + b'"}', 400),
    ("POST", "/v1/completions", b'{"prompt": "' + b"a" * 1_100_000 + b'"}', 413),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}]}', 400),
    ("POST", "/v1/models", b"{}", 405),
    ("GET", "/v2", b"", 404),
]


@dataclass(frozen=True)
class Case:
    """What to ask, and the answers that are right."""

    body: dict[str, Any]
    answers: list[Generation]


@dataclass
class Report:
    """What happened."""

    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of complete answers
    size_mib: list[float] = field(default_factory=list)  # of the server, every few seconds
    files: list[int] = field(default_factory=list)  # that it had open at the start and at the end


def make_cases(count: int, *, seed: int = 0) -> list[Case]:
    """Draw prompts of mixed lengths and settings, and answer them with the library."""
    draw, model, cases = random.Random(seed), language_model(), []
    for number in range(count):
        # Each begins with another byte: a prefix known from another prompt is the same to the
        # tolerance, and this is about being the same.
        length = draw.choice((0, 3, 10, 40, 120, 400))
        prompt = [number % 256, *(draw.randrange(256) for _ in range(length))]
        n, seed = draw.choice((1, 1, 1, 2, 3)), draw.randrange(2**31)
        sampling = Sampling(temperature=draw.choice((0, 0.7, 1.0)), top_k=draw.choice((0, 20)))
        tolerance, max_tokens = draw.choice((0.05, 0.01, 0.001)), draw.choice((1, 5, 20, 60))
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "n": n,
            "seed": seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "solver": {"tolerance": tolerance},
        }
        answers = generate(
            model,
            [prompt],
            tokenizer=Bytes(),
            max_tokens=max_tokens,
            sampling=Sampling(**{**vars(sampling), "seed": seed}),
            samples=n,
            tolerance=tolerance,
        )
        cases.append(Case(body, answers))
    return cases


class Client:
    """One of many."""

    def __init__(self, http: httpx.AsyncClient, cases: list[Case], report: Report, seed: int):
        self.http, self.cases, self.report = http, cases, report
        self.draw = random.Random(seed)

    async def run(self, until: float) -> None:
        """Do one thing after the other."""
        things = (self.ask, self.listen, self.hang_up, self.give_up, self.babble)
        while time.monotonic() < until:
            (thing,) = self.draw.choices(things, weights=(40, 30, 12, 8, 10))
            try:
                await thing(self.draw.choice(self.cases))
            except httpx.HTTPError as error:
                self.report.wrong.append(f"{thing.__name__}: {error!r}")

    async def ask(self, case: Case) -> None:
        """Wait for a whole answer."""
        began = time.monotonic()
        reply = await self.http.post("/v1/completions", json=case.body)
        if await self._is_answer(reply.status_code, reply.text):
            self.report.seconds.append(time.monotonic() - began)
            choices = reply.json()["choices"]
            self._compare(
                "whole", case, [(choice["text"], choice["token_ids"]) for choice in choices]
            )

    async def listen(self, case: Case) -> None:
        """Read a stream to its end."""
        began, lines = time.monotonic(), []
        async with self._stream(case) as reply:
            async for line in reply.aiter_lines():
                lines += [line] if line else []
        if not await self._is_answer(reply.status_code, "\n".join(lines)):
            return
        self.report.seconds.append(time.monotonic() - began)
        texts = [""] * len(case.answers)
        ids: list[list[int]] = [[] for _ in case.answers]
        for line in lines[:-1]:
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["text"]
                ids[choice["index"]] += choice["token_ids"]
        if lines[-1] != "data: [DONE]":
            self.report.wrong.append(f"stream: ended with {lines[-1][:100]}")
        self._compare("stream", case, list(zip(texts, ids, strict=True)))

    async def hang_up(self, case: Case) -> None:
        """Read a little of a stream and go."""
        left = self.draw.randrange(1, 12)
        async with self._stream(case) as reply:
            async for _ in reply.aiter_lines():
                left -= 1
                if not left:
                    break
        self.report.told["hung up on a stream"] += 1

    async def give_up(self, case: Case) -> None:
        """Ask and go before the answer is there."""
        try:
            async with asyncio.timeout(self.draw.uniform(0.0, 0.5)):
                await self.http.post("/v1/completions", json=case.body)
        except TimeoutError:
            self.report.told["hung up on an answer"] += 1

    async def babble(self, _: Case) -> None:
        """Send what is no request."""
        method, path, body, expected = self.draw.choice(NONSENSE)
        reply = await self.http.request(method, path, content=body, headers=JSON)
        self.report.told[f"refused with {reply.status_code}"] += 1
        if reply.status_code not in (expected, 429) or "error" not in reply.json():
            self.report.wrong.append(f"{path} {body[:40]!r}: {reply.status_code} {reply.text}")

    def _stream(self, case: Case) -> Any:
        return self.http.stream("POST", "/v1/completions", json=case.body | {"stream": True})

    async def _is_answer(self, status: int, text: str) -> bool:
        if status == 429:
            self.report.told["asked to come again"] += 1
            await asyncio.sleep(self.draw.uniform(0.1, 1.0))
        elif status != 200:
            self.report.wrong.append(f"{status}: {text[:200]}")
        return status == 200

    def _compare(self, kind: str, case: Case, got: list[tuple[str, list[int]]]) -> None:
        expected = [(one.text, [token.id for token in one.tokens]) for one in case.answers]
        self.report.told[f"answers compared, {kind}"] += len(got)
        self.report.told["tokens compared"] += sum(len(ids) for _, ids in got)
        if got != expected:
            self.report.wrong.append(f"{kind}: {case.body}: expected {expected}, got {got}")


async def watch(http: httpx.AsyncClient, pid: int, report: Report, until: float) -> None:
    """Note the size of the server until the end, and wait until it has nothing to do."""
    report.files.append(len(os.listdir(f"/proc/{pid}/fd")))
    while time.monotonic() < until:
        (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        report.size_mib.append(int(kib) / 1024)
        await asyncio.sleep(2)


async def rest(http: httpx.AsyncClient, report: Report) -> None:
    """Check that nothing is open any more a few seconds after the last client has gone."""
    await asyncio.sleep(3)
    text = (await http.get("/metrics")).text
    for name in ("open", "running", "prefilling", "waiting"):
        if f"equilm_{name} 0.0\n" not in text:
            report.wrong.append(f"{name}: expected 0 at the end")
    for name in ("tokens", "sweeps", "evaluations"):
        (count,) = re.findall(rf"(?m)^equilm_{name}_total (\S+)", text)
        report.told[f"server: {name}"] = int(float(count))


async def drive(url: str, pid: int, cases: list[Case], *, minutes: float, clients: int) -> Report:
    """Let the clients loose."""
    report, until = Report(), time.monotonic() + 60 * minutes
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        await http.get("/health")
        many = [Client(http, cases, report, seed).run(until) for seed in range(clients)]
        await asyncio.gather(watch(http, pid, report, until), *many)
        await rest(http, report)
    await asyncio.sleep(1)
    report.files.append(len(os.listdir(f"/proc/{pid}/fd")))
    return report


def soak(*, minutes: float, clients: int = 64, cases: int = 150) -> Report:
    """Start a server, drive it, stop it; return what happened."""
    torch.set_num_threads(1)
    asked = make_cases(cases)
    with tempfile.TemporaryDirectory() as folder:
        save_model(language_model(), Path(folder, "tiny"))
        with serving(Path(folder, "tiny"), OMP_NUM_THREADS="1") as (server, url):
            report = asyncio.run(drive(url, server.pid, asked, minutes=minutes, clients=clients))
            server.terminate()
            _, errors = server.communicate(timeout=60)
    if errors or server.returncode:
        report.wrong.append(f"server: exit code {server.returncode}, said {errors[-2000:]!r}")
    _judge(report)
    return report


def _judge(report: Report) -> None:
    """Once warm, the server neither grows nor collects open files."""
    quarter = len(report.size_mib) // 4
    warm, last = max(report.size_mib[: 2 * quarter]), max(report.size_mib[-quarter:])
    report.told["MiB of the server, first half"] = round(warm)
    report.told["MiB of the server, last quarter"] = round(last)
    if last > 1.05 * warm + 10:
        report.wrong.append(f"memory: grew from {warm:.0f} to {last:.0f} MiB")
    if report.files[1] > report.files[0] + 2:
        report.wrong.append(f"files: {report.files[0]} open at first, {report.files[1]} at last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    given = parser.parse_args()
    report = soak(minutes=given.minutes, clients=given.clients)
    for what, count in sorted(report.told.items()):
        print(f"{what}: {count:,}")
    ranked = sorted(report.seconds)
    for share in (50, 99):
        print(f"p{share}: {ranked[len(ranked) * share // 100]:.2f} s")
    print(f"wrong: {len(report.wrong)}")
    for line in report.wrong[:10]:
        print(" ", line[:500])
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
