"""Training steps: forward, loss and backward on random tokens, without the optimizer step.

Tested first: the loss and every gradient of a model of the same kind with two layers. Read
`operations.py` next.
"""

import copy
import gc
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from equilm.measure.bench.build import build, random_tokens, set_depth
from equilm.measure.bench.clock import median_ms, peak_gib
from equilm.measure.bench.floors import step_work
from equilm.measure.bench.place import Place, records_of
from equilm.measure.bench.rows import PACKED, RECOMPUTED, Row, config_of
from equilm.measure.bench.tested import compare
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.tasks import IGNORE

REPEATS = 5
# Layers, sequences and tokens of what is tested, at most; as even as what is timed, so that the
# same kernels are compiled.
TESTED_LAYERS, TESTED_BATCH, TESTED_LENGTH = 2, 16, 256
# Times the tolerance of a single operation; and once more after sweeps in 8 bits.
SLACK, FP8_SLACK = 3.0, 2.0


def train_records(rows: Iterable[Row], place: Place, name: str) -> Iterator[list[Record]]:
    """Test the model of each row, then time its step; yield the Records of a row at a time.

    Args:
        rows: Training steps.
        place: Where and in which type.
        name: Of the benchmark, in the names of the Records.

    Raises:
        Wrong: If a loss or a gradient is not that of the plain twin.
    """
    tested = set()
    for row in rows:
        if (row.model, row.precision, row.part) not in tested:
            check_step(row, place)
            tested.add((row.model, row.precision, row.part))
        # What a model leaves in cycles would count for the next one's memory.
        gc.collect()
        torch.cuda.empty_cache()
        yield _measure(name, row, place)


def loss_of(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """Return the mean loss, as a trainer computes it, with every token its own target."""
    found = model.loss(tokens_BT, tokens_BT, ignore=IGNORE)
    return found.loss_sum / found.num_targets


def check_step(row: Row, place: Place) -> None:
    """Make sure that loss and gradients of a smaller model are those of its plain twin.

    Args:
        row: Gives the model, and at most three sweeps and two phantom steps.
        place: Where and in which type.

    Raises:
        Wrong: If not.
    """
    config = config_of(row.model)
    config = replace(config, num_layers=min(TESTED_LAYERS, config.num_layers))
    model = build(config, place.device)
    shape = (min(row.batch, TESTED_BATCH), min(row.length, TESTED_LENGTH))
    tokens_BT = _tokens(model, row.part, shape, place)
    twin = copy.deepcopy(model).double()
    twin.capture = None
    set_depth(model, _short(row.depth), row.precision)
    set_depth(twin, _short(row.depth))
    # The first call is eager, the second records graphs, and the third runs from them.
    for _ in range(1 if model.capture is None else 3):
        got = _answers(model, tokens_BT, place)
    expected = _answers(twin, tokens_BT, replace(place, dtype=torch.float64))
    slack = SLACK * (FP8_SLACK if row.precision == "fp8" else 1.0)
    compare(f"training step of {row.model}", got, expected, place.dtype, slack=slack)


def _tokens(model: LanguageModel, part: str, shape: tuple[int, int], place: Place) -> Tensor:
    """Random tokens; of packed documents token 0 opens each, and the model is told so."""
    tokens_BT = random_tokens(model, shape, place.device)
    if part != PACKED:
        return tokens_BT
    model.reset_at(0)
    return tokens_BT.where(tokens_BT % 300 > 0, 0)


def _answers(model: LanguageModel, tokens_BT: Tensor, place: Place) -> dict[str, Tensor]:
    """The loss and all gradients by their names."""
    model.zero_grad(set_to_none=True)
    with place.computing():
        loss = loss_of(model, tokens_BT)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"the loss": loss.detach()} | {f"the gradient of {n}": g for n, g in gradients.items()}


def _short(depth: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if depth is None else (min(depth[0], 3), min(depth[1], 2))


def _measure(name: str, row: Row, place: Place) -> list[Record]:
    model = build(config_of(row.model), place.device)
    set_depth(model, row.depth, row.precision)
    model.recompute = row.part == RECOMPUTED
    tokens_BT = _tokens(model, row.part, (row.batch, row.length), place)

    def step() -> None:
        with place.computing():
            loss = loss_of(model, tokens_BT)
        loss.backward()
        model.zero_grad(set_to_none=True)

    ms = median_ms([step], place.device, repeats=REPEATS)
    held = sum(p.numel() * p.itemsize for p in model.parameters())
    return records_of(
        name,
        row,
        place,
        ms=ms,
        work=step_work(model, row, place.dtype.itemsize),
        peak_gib=peak_gib(step, place.device, held=held),
    )
