"""What is timed is right, and what is wrong is not timed."""

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from equilm.measure import bench as module
from equilm.measure.bench import CPU_ROWS, GPU_ROWS, Row, TrainRow, bench, check_scan
from equilm.ops.scan import ssd_chunked
from equilm.report.tables import Table
from tests.measure.models import small

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand two tiny models in for the published ones, on the CPU."""
    configs = {"tiny": small().config, "explicit-tiny": small(implicit=False).config}
    rows = (
        TrainRow(model="tiny", batch=2, length=5, sweeps=3, phantom=2),
        TrainRow(model="explicit-tiny", batch=2, length=5),
    )
    monkeypatch.setattr(module, "preset", lambda name: configs[name or "tiny"])
    monkeypatch.setattr(module, "CPU_ROWS", rows)
    monkeypatch.setattr(module, "REPEATS", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def shown(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table.terminal())
    return capture.get().splitlines()


@pytest.mark.usefixtures("tiny")
def test_training_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every look at the clock is a millisecond after the last.
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 1000)
    table, records = bench("train")
    assert [row[0] for row in table.rows] == ["tiny 3+2 2x5", "explicit-tiny 2x5"]
    assert table.header == ("", "ms", "tokens/s", "TFLOP/s")
    told = {(r.model, r.name): r.value for r in records}
    assert told["tiny 3+2 2x5", "bench_train_time"] == pytest.approx(1)
    assert told["tiny 3+2 2x5", "bench_train_speed"] == pytest.approx(10_000)
    model = small(implicit=False)
    flops = 10 * (3 * model.core.flops_per_token(5) + 6 * model.embedding.numel())
    assert told["explicit-tiny 2x5", "bench_train_rate"] == pytest.approx(flops * 1e3 / 1e12)
    assert {(r.unit, r.device) for r in records if r.name.endswith("_time")} == {("ms", "cpu")}


@pytest.mark.usefixtures("tiny")
def test_all_sweeps_of_a_training_step_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from equilm.nn.block import Stack

    forward, calls = Stack.forward, 0

    def counted(self: Stack, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(self, *arguments)

    monkeypatch.setattr(Stack, "forward", counted)
    bench("train", only="tiny")
    assert calls == (3 + 2) * (module.REPEATS + 2)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("what", "parts"), [("ops", 4), ("decode", 2)])
def test_operations_and_sweeps_are_timed(what: str, parts: int) -> None:
    table, records = bench(what, only="tiny")
    assert len(table.rows) == parts and len(records) == 2 * parts
    assert all(isinstance(r.value, float) and r.value > 0 for r in records)
    explicit, _ = bench(what, only="explicit-tiny")
    assert len(explicit.rows) == (3 if what == "ops" else 2)


def test_the_scan_of_today_is_right() -> None:
    check_scan(CPU)


def wrong_output(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, last = ssd_chunked(*inputs)
    return y * 1.001, last


def wrong_state(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, last = ssd_chunked(*inputs)
    return y, last * 1.001


def wrong_gradient(x: Tensor, dt: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    dt = dt + (dt * 0.01 - (dt * 0.01).detach())
    return ssd_chunked(x, dt, *rest)


def not_finite(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, last = ssd_chunked(*inputs)
    return y * torch.nan, last


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("scan", [wrong_output, wrong_state, wrong_gradient, not_finite])
def test_a_wrong_scan_is_not_timed(scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ssd_chunked", scan)
    with pytest.raises(RuntimeError, match=r"^scan: the chunked form differs .* nothing was timed"):
        bench("train")


def test_one_model_is_timed_as_it_is_listed_or_shortly() -> None:
    assert module._chosen(CPU_ROWS, "") == CPU_ROWS
    assert module._chosen(GPU_ROWS, "mamba2-1.3b") == GPU_ROWS[-2:]
    (implicit,) = module._chosen(CPU_ROWS, "llama-130m")
    (explicit,) = module._chosen(CPU_ROWS, "explicit-llama-130m")
    assert (implicit.name, explicit.name) == ("llama-130m 4+1", "explicit-llama-130m")
    with pytest.raises(ValueError, match="did you mean 'llama-130m'"):
        bench("train", only="lama-130m")


def test_the_tables_fit_a_terminal_with_names_on_one_line() -> None:
    values = dict.fromkeys(module.UNITS, 123_456.0) | {"rate": 512.34, "ratio": 12.34}
    rows = [Row(f"{row.name} {row.batch}x{row.length}", values) for row in GPU_ROWS]
    table = module._as_table("train on NVIDIA H200, median of 5", rows)
    lines = shown(replace(table, title=""))
    for row in rows:
        assert any(line.strip().startswith(f"{row.name} ") and "12.34" in line for line in lines)
    assert table.rows[0][1:] == ("123,456", "123,456", "512.3", "123,456", "12.34")
    assert not any("…" in line for line in lines)


def test_a_column_nobody_measured_is_left_out() -> None:
    table = module._as_table("", [Row("a", {"time": 1.0}), Row("b", {"speed": 2.0})])
    assert table.header == ("", "ms", "tokens/s")
    assert table.rows == (("a", "1", "—"), ("b", "—", "2"))
