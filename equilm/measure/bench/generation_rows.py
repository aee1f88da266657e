"""A token of every row by greedy generation: embedding, all layers, head, and the state kept.

On a GPU from a graph of `TOGETHER` tokens, since keeping a state that is a new one copies it. The
layers are tested first. Read `planning.py` next.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from equilm import tree
from equilm.measure.bench.build import build, random_tokens, stack_of
from equilm.measure.bench.clock import WARM_UP, median_ms
from equilm.measure.bench.decode_rows import check_sweep
from equilm.measure.bench.floors import Work, stack_work, tensor_bytes
from equilm.measure.bench.place import Place, records_of
from equilm.measure.bench.rows import Row, config_of
from equilm.nn.graph import recorded
from equilm.nn.linear import prepared
from equilm.nn.mixer import State
from equilm.nn.model import LanguageModel
from equilm.record import Record

REPEATS = 5
TOGETHER = 4  # tokens
READ = 16  # prompts that are read; more rows repeat their states
PROMPTS = {"a token after 2048": 2048, "a token after 64": 64}


def generation_rows(batches: Mapping[str, Iterable[int]], part: str) -> tuple[Row, ...]:
    """The rows of explicit models after a prompt of `PROMPTS`, at the batches of each."""
    return tuple(
        Row(model=f"explicit-{model}", batch=batch, length=1, part=part)
        for model, sizes in batches.items()
        for batch in sizes
    )


def generation_records(rows: Iterable[Row], place: Place, name: str) -> Iterator[list[Record]]:
    """Test the layers of each model, then time its tokens; yield the Records of a row at a time.

    Args:
        rows: As `generation_rows` makes them.
        place: Where and in which type.
        name: Of the benchmark, in the names of the Records.

    Raises:
        Wrong: If an output or a state is not that of the plain twin.
    """
    tested = set()
    for row in rows:
        if row.model not in tested:
            check_sweep(row, place)
            tested.add(row.model)
        yield _measure(name, row, place)


def _measure(name: str, row: Row, place: Place) -> list[Record]:
    # The cache of attention is of the weights' type; recurrent states stay in float32.
    model = build(config_of(row.model), place.device).to(place.dtype)
    with torch.no_grad(), place.computing(), prepared(model):
        tokens_B1, state = _prompted(model, row, place)

        def run() -> None:
            _step(model, tokens_B1, state)

        repeat = recorded(run) if place.device.type == "cuda" else run
        ms = median_ms([repeat], place.device, repeats=REPEATS) / TOGETHER
    itemsize = place.dtype.itemsize
    work = stack_work(stack_of(model), row.batch, 1, itemsize)
    head = Work(2.0 * row.batch * model.embedding.numel(), itemsize * model.embedding.numel())
    return records_of(name, row, place, ms=ms, work=work + head + Work(0.0, tensor_bytes(state)))


def _prompted(model: LanguageModel, row: Row, place: Place) -> tuple[Tensor, State]:
    """The last tokens of prompts and the states behind them, with room for what is timed."""
    room = (WARM_UP + REPEATS + 2) * TOGETHER
    some = min(row.batch, READ)
    tokens_BT = random_tokens(model, (some, PROMPTS[row.part]), place.device)
    state = model.init_state(some, tokens_BT.shape[1] + room)
    _, state = model.core(model.embed(tokens_BT), state)
    rows_B = torch.arange(row.batch, device=place.device) % some
    return tokens_BT[rows_B, -1:], state if some == row.batch else tree.take(state, rows_B)


def _step(model: LanguageModel, tokens_B1: Tensor, state: State) -> None:
    """Let the likeliest next tokens, `TOGETHER` of them, and the state after take these places."""
    last_B1, after = tokens_B1, state
    for _ in range(TOGETHER):
        z_B1D, after = model.core(model.embed(last_B1), after)
        last_B1 = model.logits(z_B1D).argmax(-1)
    tokens_B1.copy_(last_B1)
    tree.overwrite(state, after)
