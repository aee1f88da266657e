"""How fast: a training step, the operations, a decoding sweep; each tested before it is timed.

Sizes are the published ones on a GPU and small ones on a CPU. Figures of the public reference
stand beside the rows that share its conditions.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from equilm.nn.block import Stack
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.linear import prepared
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.nn.presets import preset
from equilm.ops.scan import ssd_chunked, ssd_sequential
from equilm.record import Record, environment
from equilm.report.tables import MISSING, Table
from equilm.solve.gradient import Phantom
from equilm.solve.iterate import Solve
from equilm.tasks import cross_entropy_sum

REPEATS = 5
UNITS = {"time": "ms", "speed": "tokens/s", "rate": "TFLOP/s", "memory": "GiB", "ratio": "x"}


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """A training step to time: forward, loss and backward on random tokens, all sweeps run.

    `reference_ms` is what the public reference takes on one NVIDIA H200 in bf16 (driver 580, torch
    2.11, random tokens and values, tolerance 0, median of 5), without the optimizer step.
    """

    model: str
    batch: int
    length: int
    sweeps: int | None = None  # none for an explicit model
    phantom: int = 0
    reference_ms: float | None = None

    @property
    def name(self) -> str:
        """The model and its depth."""
        depth = "" if self.sweeps is None else f" {self.sweeps}+{self.phantom}"
        return f"{self.model}{depth}"


GPU_ROWS = (
    TrainRow(
        model="state-tracking", batch=512, length=256, sweeps=32, phantom=4, reference_ms=212.1
    ),
    TrainRow(model="state-tracking", batch=512, length=256, sweeps=4, phantom=1, reference_ms=35.4),
    TrainRow(model="explicit-mamba2-130m", batch=16, length=2048, reference_ms=181.4),
    TrainRow(model="mamba2-130m", batch=16, length=2048, sweeps=4, phantom=1, reference_ms=372.4),
    TrainRow(model="mamba2-130m", batch=16, length=2048, sweeps=24, phantom=4, reference_ms=1900.8),
    TrainRow(model="explicit-mamba2-1.3b", batch=4, length=2048, reference_ms=362.2),
    TrainRow(model="mamba2-1.3b", batch=4, length=2048, sweeps=4, phantom=1, reference_ms=885.3),
    TrainRow(model="mamba2-1.3b", batch=4, length=2048, sweeps=24, phantom=4, reference_ms=3491.0),
)
CPU_ROWS = (
    TrainRow(model="state-tracking", batch=8, length=64, sweeps=32, phantom=4),
    TrainRow(model="state-tracking", batch=8, length=64, sweeps=4, phantom=1),
    TrainRow(model="explicit-state-tracking", batch=8, length=64),
)


class Row(NamedTuple):
    """What was timed, and what came out, by the names of `UNITS`."""

    name: str
    values: dict[str, float]


class Timing(NamedTuple):
    """The median of several runs, and the most memory they held."""

    ms: float
    peak_gib: float | None  # of device memory; unknown on a CPU


def bench(what: str, *, only: str = "") -> tuple[Table, list[Record]]:
    """Test, then time.

    Args:
        what: `train`, `ops` or `decode`.
        only: Only this model; any of `PRESETS`.

    Returns:
        A table to print, and its Records.

    Raises:
        ValueError: For an unknown model.
        RuntimeError: If what would be timed is wrong.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_scan(device)
    kinds: dict[str, Callable[[torch.device, str], Iterator[Row]]] = {
        "train": _train_rows,
        "ops": _op_rows,
        "decode": _decode_rows,
    }
    about = environment(device.type)
    measured = list(kinds[what](device, only))
    records = [
        Record(name=f"bench_{what}_{key}", value=value, unit=UNITS[key], model=name, **about)
        for name, values in measured
        for key, value in values.items()
    ]
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return _as_table(f"{what} on {device_name}, median of {REPEATS}", measured), records


def check_scan(device: torch.device) -> None:
    """Make sure that the chunked scan is the sequential one, in outputs and gradients.

    Raises:
        RuntimeError: If not.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    inputs = [draw(2, 100, 3, 16), draw(2, 100, 3), draw(3), draw(2, 100, 1, 8)]
    inputs += [draw(2, 100, 1, 8), draw(3), draw(2, 3, 16, 8)]
    results = []
    for scan in (ssd_chunked, ssd_sequential):
        x, dt, a, b, c, skip, state = inputs
        y, last = scan(x, dt.exp(), -a.exp(), b, c, skip, state)
        gradients = torch.autograd.grad(y.square().sum() + last.square().sum(), inputs)
        results.append([y, last, *gradients])
    for left, right in zip(*results, strict=True):
        error = ((left - right).norm() / right.norm()).item()
        if not error < 1e-4:
            raise RuntimeError(
                f"scan: the chunked form differs by {error:.1e} from the sequential one, so "
                "nothing was timed"
            )


def _train_rows(device: torch.device, only: str) -> Iterator[Row]:
    for row in _chosen(GPU_ROWS if device.type == "cuda" else CPU_ROWS, only):
        model = _build(preset(row.model), device)
        if isinstance(model.core, Equilibrium) and row.sweeps is not None:
            model.core.solve = Solve(tolerance=0.0, max_steps=row.sweeps, cycle=None)
            model.core.gradient = Phantom(steps=row.phantom)
        generator = torch.Generator().manual_seed(0)
        shape = (row.batch, row.length)
        tokens_BT = torch.randint(model.vocab_size, shape, generator=generator).to(device)

        def step(model: LanguageModel = model, tokens_BT: Tensor = tokens_BT) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits_BTV, _ = model(tokens_BT)
            loss_sum, count = cross_entropy_sum(logits_BTV, tokens_BT)
            (loss_sum / count).backward()
            model.zero_grad(set_to_none=True)

        timing = _time(step, device)
        tokens = row.batch * row.length
        # A backward pass costs two forward ones; the sweeps have none.
        evaluations = 3 if row.sweeps is None else row.sweeps + 3 * row.phantom
        flops = tokens * model.core.flops_per_token(row.length) * evaluations
        flops += tokens * 6.0 * model.embedding.numel()
        values = {
            "time": timing.ms,
            "speed": tokens / timing.ms * 1e3,
            "rate": flops / timing.ms / 1e9,
        }
        if timing.peak_gib is not None:
            values["memory"] = timing.peak_gib
        if row.reference_ms is not None and device.type == "cuda":
            values["ratio"] = row.reference_ms / timing.ms
        yield Row(f"{row.name} {row.batch}x{row.length}", values)


def _chosen(rows: tuple[TrainRow, ...], only: str) -> tuple[TrainRow, ...]:
    if not only:
        return rows
    depth = {} if preset(only).equilibrium is None else {"sweeps": 4, "phantom": 1}
    return tuple(row for row in rows if row.model == only) or (
        TrainRow(model=only, batch=1, length=64, **depth),
    )


def _op_rows(device: torch.device, only: str) -> Iterator[Row]:
    name = only or "state-tracking"
    model = _build(preset(name), device)
    rows, length = (16, 2048) if device.type == "cuda" else (4, 256)
    x_BTD = _noise((rows, length, model.config.width), device)
    core, block = model.core, _stack(model).blocks[0]
    parts: dict[str, Callable[[], object]] = {
        "norm": lambda: block.norm(x_BTD),
        "mixer": lambda: block.mixer(x_BTD),
        "block": lambda: block(x_BTD, None, None, None, None),
    }
    if isinstance(core, Equilibrium):
        parts["injection"] = lambda: core.inject(x_BTD)
    for part, run in parts.items():
        with torch.no_grad(), prepared(model):
            timing = _time(run, device)
        values = {"time": timing.ms, "speed": rows * length / timing.ms * 1e3}
        yield Row(f"{name} {part} {rows}x{length}", values)


def _decode_rows(device: torch.device, only: str) -> Iterator[Row]:
    models = ("mamba2-130m", "mamba2-1.3b") if device.type == "cuda" else ("state-tracking",)
    reference = {
        ("mamba2-130m", 1): 33.1,
        ("mamba2-130m", 64): 34.4,
        ("mamba2-1.3b", 1): 78.2,
        ("mamba2-1.3b", 64): 80.9,
    }
    for name in (only,) if only else models:
        model = _build(preset(name), device)
        body = _stack(model)
        for batch in (1, 64):
            state = body.init_state(batch, 16)
            z_B1D = _noise((batch, 1, model.config.width), device)
            u_B1E = _noise((batch, 1, body.inject_width), device)
            with torch.no_grad(), prepared(model):
                timing = _time(partial(body, z_B1D, state, u_B1E), device)
            values = {"time": timing.ms, "speed": batch / timing.ms * 1e3}
            if (name, batch) in reference and device.type == "cuda":
                values["ratio"] = reference[name, batch] / timing.ms
            yield Row(f"{name} one sweep, batch {batch}", values)


def _as_table(title: str, measured: list[Row]) -> Table:
    columns = [key for key in UNITS if any(key in row.values for row in measured)]
    rows = tuple(
        (row.name, *(_cell(row.values[key]) if key in row.values else MISSING for key in columns))
        for row in measured
    )
    header = ["times faster" if key == "ratio" else UNITS[key] for key in columns]
    return Table(title, ("", *header), rows)


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _build(config: ModelConfig, device: torch.device) -> LanguageModel:
    model = LanguageModel(replace(config, dropout=0.0), generator=torch.Generator().manual_seed(0))
    return model.to(device)


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _stack(model: LanguageModel) -> Stack:
    body = model.core.body if isinstance(model.core, Equilibrium) else model.core
    assert isinstance(body, Stack)
    return body


def _time(run: Callable[[], object], device: torch.device) -> Timing:
    """Return the median time after two warm-up runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for repeat in range(REPEATS + 2):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        if repeat >= 2:
            times.append(1e3 * (time.perf_counter() - began))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return Timing(sorted(times)[len(times) // 2], peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
