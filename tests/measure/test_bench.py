"""What is timed is right, and what is wrong is not timed."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from equilm.decode.request import Request
from equilm.measure import bench as package
from equilm.measure.bench import (
    bench,
    clock,
    decode_rows,
    engine_rows,
    inputs,
    mamba2_operations,
    operation,
    planning,
    rows,
    train_rows,
)
from equilm.measure.bench.operations import operations_of
from equilm.measure.bench.place import Place, here
from equilm.measure.bench.rows import Known, Row, config_of, sweep_row
from equilm.measure.bench.tested import Wrong
from equilm.nn.block import Block, Stack
from equilm.nn.model import ModelConfig
from equilm.ops.scan import ssd_chunked
from equilm.record import Record
from tests.measure.models import small

CONFIGS = {
    "tiny": small().config,
    "explicit-tiny": small(implicit=False).config,
    "tiny-llama": small("attention").config,
}
CPU = Place(device=torch.device("cpu"), dtype=torch.float32, name="cpu")


def tiny_config(name: str) -> ModelConfig:
    if name not in CONFIGS:
        raise ValueError(f"preset: expected one of {', '.join(CONFIGS)}, got {name!r}")
    return CONFIGS[name]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand tiny models in for the published ones, on the CPU."""
    steps = (
        Row(model="tiny", batch=2, length=5, depth=(3, 2)),
        Row(model="explicit-tiny", batch=2, length=5),
    )
    for name in ("decode_rows", "inputs", "op_rows", "planning", "train_rows"):
        monkeypatch.setattr(f"equilm.measure.bench.{name}.config_of", tiny_config)
    for module in (train_rows, decode_rows, operation):
        monkeypatch.setattr(module, "REPEATS", 3)
    monkeypatch.setattr(rows, "TRAIN_CPU", steps)
    monkeypatch.setattr(rows, "SHAPES_CPU", {"tiny": (2, 5), "tiny-llama": (3, 4)})
    monkeypatch.setattr(rows, "DECODE_CPU", (sweep_row("tiny", 1), sweep_row("tiny-llama", 3)))
    monkeypatch.setattr(planning, "SHORT", 20)
    monkeypatch.setattr(engine_rows, "SWEEPS", 36)
    monkeypatch.setattr(engine_rows, "PROMPTS", 1)
    monkeypatch.setattr(engine_rows, "config_of", tiny_config)
    monkeypatch.setattr("equilm.measure.bench.planning._mixers", lambda on_gpu: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def by_row(what: str, **chosen: str) -> dict[str, dict[str, Record]]:
    """The Records of each row, by the ends of their names."""
    found = {}
    for records in bench(what, **chosen):
        one = records[0]
        depth = None if one.sweeps is None or one.phantom is None else (one.sweeps, one.phantom)
        name = f"{one.model} {one.part} {depth} {one.batch}x{one.length}"
        found[name] = {r.name.rpartition("_")[2]: r for r in records}
    return found


@pytest.mark.usefixtures("tiny")
def test_training_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every look at the clock is a millisecond after the last.
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 1000)
    found = by_row("train")
    assert list(found) == ["tiny  (3, 2) 2x5", "explicit-tiny  None 2x5"]
    told = found["explicit-tiny  None 2x5"]
    assert told["time"].value == pytest.approx(1)
    assert told["speed"].value == pytest.approx(10_000)
    model = small(implicit=False)
    flops = 10 * (3 * model.core.flops_per_token(5) + 6 * model.embedding.numel())
    assert told["rate"].value == pytest.approx(flops * 1e3 / 1e12)
    assert {r.unit for r in (told["time"], told["memory"])} == {"ms", "GiB"}
    about = told["time"]
    assert (about.name, about.device, about.precision) == ("bench_train_time", "cpu", "float32")
    assert about.commit and "torch " in about.software
    assert "reference" not in told and "compute" not in told


@pytest.mark.usefixtures("tiny")
def test_all_sweeps_of_a_training_step_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Stack, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return evaluate(self, *arguments)

        return call

    monkeypatch.setattr(train_rows, "check_step", lambda row, place: None)
    # The sweeps want no state, the steps with a gradient do.
    for name in ("peek", "forward"):
        monkeypatch.setattr(Stack, name, counted(getattr(Stack, name)))
    by_row("train", only="tiny 3+2")
    # Two runs to warm up, three that are timed, one whose memory is measured.
    assert calls == (3 + 2) * (2 + 3 + 1)


@pytest.mark.usefixtures("tiny")
def test_operations_are_timed_forward_and_back() -> None:
    found = by_row("ops")
    names = [name.removesuffix(" None 2x5") for name in found if name.startswith("tiny ")]
    assert len(names) == 18 and names[:2] == [
        "tiny in_proj forward",
        "tiny in_proj with backward",
    ]
    assert [name for name in found if name.startswith("tiny-llama attention")] == [
        "tiny-llama attention forward None 3x4",
        "tiny-llama attention with backward None 3x4",
    ]
    numbers = [r.value for told in found.values() for key, r in told.items() if key != "rate"]
    assert all(isinstance(number, float) and number > 0 for number in numbers)


@pytest.mark.usefixtures("tiny")
def test_sweeps_are_timed() -> None:
    found = by_row("decode")
    assert list(found) == [
        "tiny one sweep None 1x1",
        "tiny-llama one sweep None 3x1",
        "tiny sweep in the engine None 1x1",
        "tiny-llama sweep in the engine None 3x1",
        "tiny prompt in the engine None 1x20",
        "tiny-llama prompt in the engine None 1x20",
    ]
    told = found["tiny one sweep None 1x1"]
    assert told["speed"].value == pytest.approx(1e3 / float(str(told["time"].value)))
    # Eight evaluations a token, and one that says how the last of them ended.
    told = found["tiny sweep in the engine None 1x1"]
    sweeps = float(str(told["time"].value)) * float(str(told["speed"].value)) / 1e3
    assert sweeps == pytest.approx(1 / 9, rel=0.1)


@pytest.mark.usefixtures("tiny")
def test_an_engine_whose_recordings_lie_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = itertools.count()
    monkeypatch.setattr(engine_rows, "_requests", lambda model, count, _: _odd(next(turns)))
    with pytest.raises(Wrong, match=r"^engine of tiny: recordings change the answers"):
        by_row("decode", only="tiny sweep in the engine")


def _odd(turn: int) -> list[Request]:
    return [Request(prompt=(1,), max_tokens=3 + turn, max_steps=8, tolerance=0.0)]


@pytest.mark.usefixtures("tiny")
def test_memory_grows_with_phantom_steps_and_not_with_sweeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_rows, "REPEATS", 1)
    monkeypatch.setattr(clock, "WARM_UP", 0)
    monkeypatch.setattr(train_rows, "check_step", lambda row, place: None)
    depths = [(0, 1), (1, 1), (9, 1), (1, 2), (1, 3), (1, 4)]
    steps = [Row(model="tiny", batch=2, length=8, depth=depth) for depth in depths]
    memory = [
        float(str(r.value))
        for records in train_rows.train_records(steps, CPU, "by_sweeps")
        for r in records
        if r.name == "bench_by_sweeps_memory"
    ]
    assert memory[0] <= memory[1] == memory[2], "the first has no sweep at all"
    second, third, fourth = (after - before for before, after in itertools.pairwise(memory[2:]))
    assert second > 0 and third > 0
    assert third == pytest.approx(fourth, rel=0.02)


def wrong_output(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, last = ssd_chunked(*inputs)
    return y * 1.001, last


def wrong_state(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, last = ssd_chunked(*inputs)
    return y, last * 1.001


def wrong_gradient(x: Tensor, dt: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    dt = dt + (dt * 0.01 - (dt * 0.01).detach())
    return ssd_chunked(x, dt, *rest)


def wrong_in_the_last_row(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    right, last = ssd_chunked(x, *rest)
    return torch.cat([right[:-1], right[-1:] * 1.001]), last


def not_finite(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, last = ssd_chunked(*inputs)
    return y * torch.nan, last


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("scan", "part"),
    [
        (wrong_output, "output 0"),
        (wrong_state, "output 1"),
        (wrong_gradient, "the gradient of row input 1"),
        (wrong_in_the_last_row, "output 0"),
        (not_finite, "output 0"),
    ],
)
def test_a_wrong_scan_is_not_timed(
    scan: Callable[..., Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mamba2_operations, "ssd", scan)
    with pytest.raises(Wrong, match=f"^scan of tiny: {part} differs by .* so nothing was timed"):
        by_row("ops", only="tiny scan")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("what", ["train", "decode"])
def test_wrong_layers_are_not_timed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Block.forward

    def wrong(self: Block, *arguments: Any) -> Any:
        r, y, state = forward(self, *arguments)
        return r, y if y.dtype == torch.float64 else y + 0.1, state

    monkeypatch.setattr(Block, "forward", wrong)
    with pytest.raises(Wrong, match=r"of tiny: the (loss|output) differs"):
        by_row(what)


@pytest.mark.parametrize("row", rows.TRAIN_CPU, ids=lambda row: row.label)
def test_half_precision_passes_its_test(row: Row) -> None:
    train_rows.check_step(replace(row, length=33), replace(CPU, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["small-mamba2", "small-llama"])
def test_operations_in_half_precision_pass_their_test(name: str) -> None:
    place = replace(CPU, dtype=torch.bfloat16)
    drawn = inputs.draw(Row(model=name, batch=2, length=33), place)
    for part, make in operations_of(config_of(name)).items():
        operation.check(part, make(drawn), place)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["full", "fp8"])
def test_recorded_steps_pass_their_test(precision: Literal["full", "fp8"]) -> None:
    row = Row(model="state-tracking", batch=16, length=256, depth=(4, 1), precision=precision)
    train_rows.check_step(row, here())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["state-tracking", "small-mamba2", "small-llama"])
def test_operations_on_a_gpu_pass_their_test(name: str) -> None:
    drawn = inputs.draw(Row(model=name, batch=16, length=256), here())
    for part, make in operations_of(config_of(name)).items():
        operation.check(part, make(drawn), here())


@pytest.mark.gpu
def test_a_row_on_a_gpu_has_its_memory() -> None:
    [records] = train_rows.train_records(
        [Row(model="small-mamba2", batch=16, length=256, depth=(4, 1))], here(), "train"
    )
    told = {r.name.removeprefix("bench_train_"): float(str(r.value)) for r in records}
    assert told["time"] > 0 and told["memory"] > 0.01


@pytest.mark.usefixtures("tiny")
def test_the_reference_is_told_on_its_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(reference_ms=2.0, goal_ms=1.0, goal_gib=3.0)
    monkeypatch.setattr(
        rows, "TRAIN_CPU", (Row(model="explicit-tiny", batch=1, length=3, known=known),)
    )
    monkeypatch.setattr(package, "here", lambda: replace(here(), name=rows.REFERENCE_DEVICE))
    [records] = bench("train")
    told = {r.name.removeprefix("bench_train_"): r.value for r in records}
    assert (told["reference"], told["goal"], told["goal_memory"]) == (2.0, 1.0, 3.0)
    assert "reference_memory" not in told
    assert float(str(told["floor_compute"])) > 0 and float(str(told["floor_memory"])) > 0
