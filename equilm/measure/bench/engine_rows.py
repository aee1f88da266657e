"""The decoding engine as a whole: a sweep with all that is around it, and a prompt taken in.

Tested first: what is replayed from recordings answers as what is called. Read `decode_rows.py`
first.
"""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from equilm.decode.engine import Engine
from equilm.decode.request import Request, Sampling
from equilm.measure.bench.build import build, random_tokens, stack_of
from equilm.measure.bench.floors import Work, stack_work, tensor_bytes
from equilm.measure.bench.place import Place, records_of
from equilm.measure.bench.rows import Known, Row, config_of
from equilm.measure.bench.tested import Wrong
from equilm.nn.model import LanguageModel
from equilm.record import Record

# Evaluations a token, in turns, so that somebody settles after nearly every sweep.
STEPS = (6, 7, 8, 9, 10)
SWEEPS = 200  # that are timed
PROMPTS = 3  # that are timed, after one to warm up

ENGINE, PROMPT = "sweep in the engine", "prompt in the engine"
GOALS_MS = {("mamba2-130m", 2048): 100.0}  # of a prompt


def engine_rows(sweeps: Iterable[Row], prompt: int) -> list[Row]:
    """Return the rows of the engine beside those of bare sweeps, and a prompt of each model.

    Args:
        sweeps: Bare ones.
        prompt: Tokens.
    """
    found = [replace(row, part=ENGINE) for row in sweeps]
    for model in dict.fromkeys(row.model for row in found):
        known = Known(goal_ms=GOALS_MS.get((model, prompt)))
        found.append(Row(model=model, batch=1, length=prompt, part=PROMPT, known=known))
    return found


def engine_records(rows: Iterable[Row], place: Place, name: str) -> Iterator[list[Record]]:
    """Test the engine at each row, then time it; yield the Records of a row at a time.

    Args:
        rows: Of one token for sweeps, of more for a prompt.
        place: Where and in which type.
        name: Of the benchmark, in the names of the Records.

    Raises:
        Wrong: If recordings change an answer.
    """
    for row in rows:
        check_engine(row, place)
        model = build(config_of(row.model), place.device).eval()
        work = stack_work(stack_of(model), row.batch, row.length, place.dtype.itemsize)
        if row.length > 1:
            ms, speed = _prompt_ms(model, row, place), None
        else:
            ms, speed = _sweep_ms(model, row, place)
            state = model.init_state(row.batch, 1)
            work = work + Work(0.0, tensor_bytes(state))
        found = records_of(name, row, place, ms=ms, work=work)
        yield [
            replace(r, value=speed) if speed is not None and r.name.endswith("_speed") else r
            for r in found
        ]


def check_engine(row: Row, place: Place) -> None:
    """Make sure that two layers of the model answer from recordings as they do called.

    Raises:
        Wrong: If a token differs.
    """
    config = config_of(row.model)
    small = replace(config, num_layers=min(2, config.num_layers), vocab_size=50)
    model = build(small, place.device).eval()
    said = []
    for records in (True, False):
        engine = engine_of(model, min(row.batch, 8), place)
        engine.slots.recorder.records &= records
        numbers = [engine.submit(request) for request in _requests(model, min(row.batch, 8), 5)]
        heard: dict[int, list[int]] = {number: [] for number in numbers}
        while engine.busy:
            for event in engine.step():
                heard[event.request_id] += [event.token.id] if event.token else []
        said.append(heard)
    if said[0] != said[1]:
        raise Wrong(f"engine of {row.model}: recordings change the answers, so nothing was timed")


def engine_of(model: LanguageModel, slots: int, place: Place) -> Engine:
    """Return an engine that computes in the type of a place."""
    precision = "bf16" if place.dtype == torch.bfloat16 else "float32"
    return Engine(model, slots=slots, precision=precision)  # type: ignore[arg-type]


def _requests(model: LanguageModel, count: int, max_tokens: int) -> list[Request]:
    tokens_N1 = random_tokens(model, (count, 1), model.embedding.device)
    return [
        Request(
            prompt=(token,),
            max_tokens=max_tokens,
            sampling=Sampling(seed=number),
            tolerance=0.0,
            max_steps=STEPS[number % len(STEPS)] if count > 1 else STEPS[len(STEPS) // 2],
        )
        for number, token in enumerate(tokens_N1[:, 0].tolist())
    ]


def _sweep_ms(model: LanguageModel, row: Row, place: Place) -> tuple[float, float]:
    """Time of a sweep with all that is around it, and tokens a second at eight a token."""
    engine = engine_of(model, row.batch, place)
    for request in _requests(model, row.batch, 1000):
        engine.submit(request)
    for _ in range(SWEEPS // 2):
        engine.step()
    before, began = engine.counts, _now(place)
    for _ in range(SWEEPS):
        engine.step()
    after, seconds = engine.counts, _now(place) - began
    sweeps, tokens = after.sweeps - before.sweeps, after.tokens - before.tokens
    return 1e3 * seconds / sweeps, tokens / seconds


def _prompt_ms(model: LanguageModel, row: Row, place: Place) -> float:
    """Time from a prompt to the first token after it, of all rows together."""
    engine = engine_of(model, row.batch, place)
    taken = []
    for turn in range(1 + PROMPTS):
        began = _now(place)
        tokens_BT = random_tokens(model, (row.batch, row.length), place.device)
        for prompt in tokens_BT.roll(turn, 1).tolist():
            engine.submit(Request(prompt=tuple(prompt), max_tokens=1, tolerance=0.05, max_steps=24))
        while engine.busy:
            engine.step()
        taken.append(1e3 * (_now(place) - began))
    return statistics.median(taken[1:])


def _now(place: Place) -> float:
    if place.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
