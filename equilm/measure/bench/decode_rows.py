"""One sweep of all layers for one token a sequence: what decoding repeats, from a graph on a GPU.

Tested first: outputs and next states of two layers. Read `engine_rows.py` next.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from equilm import tree
from equilm.measure.bench.build import build, noise, stack_of
from equilm.measure.bench.clock import median_ms, peak_gib
from equilm.measure.bench.engine_rows import ENGINE, PROMPT, engine_records
from equilm.measure.bench.floors import Work, stack_work, tensor_bytes
from equilm.measure.bench.place import Place, records_of
from equilm.measure.bench.rows import Row, config_of
from equilm.measure.bench.tested import compare
from equilm.nn.block import Stack
from equilm.nn.graph import recorded
from equilm.nn.linear import prepared
from equilm.nn.mixer import State
from equilm.record import Record

REPEATS = 20
CAPACITY = 16  # tokens of an attention cache, of which eight are taken
SLACK = 2.0  # times the tolerance of a single operation, for two layers


def decode_records(rows: Iterable[Row], place: Place, name: str) -> Iterator[list[Record]]:
    """Test the layers of each row, then time a sweep; yield the Records of a row at a time.

    Args:
        rows: Sweeps, and what the engine does.
        place: Where and in which type.
        name: Of the benchmark, in the names of the Records.

    Raises:
        Wrong: If an output or a state is not that of the plain twin, or an answer of the engine.
    """
    for row in rows:
        if row.part in (ENGINE, PROMPT):
            yield from engine_records([row], place, name)
            continue
        check_sweep(row, place)
        yield _measure(name, row, place)


def check_sweep(row: Row, place: Place) -> None:
    """Make sure that two layers of the model decode like their plain twin in float64.

    Raises:
        Wrong: If an output or a state differs.
    """
    config = config_of(row.model)
    small = replace(config, num_layers=min(2, config.num_layers), vocab_size=8)
    body = stack_of(build(small, place.device))
    twin = copy.deepcopy(body).double()
    before, z_B1D, u_B1E = _inputs(body, row.batch, place)
    with torch.no_grad():
        with place.computing(), prepared(body):
            got = body(z_B1D, _copied(before), u_B1E)
            peeked = body.peek(z_B1D, _copied(before), u_B1E)
        wide = tree.map_(_wide, before)
        expected = twin(z_B1D.double(), wide, u_B1E.double())
    compare(f"sweep of {row.model}", _named(got), _named(expected), place.dtype, slack=SLACK)
    compare("its output alone", {"y": peeked}, {"y": expected[0]}, place.dtype, slack=SLACK)


def _measure(name: str, row: Row, place: Place) -> list[Record]:
    model = build(config_of(row.model), place.device)
    body = stack_of(model)
    state, z_B1D, u_B1E = _inputs(body, row.batch, place)
    with torch.no_grad(), place.computing(), prepared(body):
        run: Callable[[], Tensor] = partial(body.peek, z_B1D, state, u_B1E)
        if place.device.type == "cuda":
            run = recorded(run)
        ms = median_ms([run], place.device, repeats=REPEATS)
        held = int(tensor_bytes(state)) + sum(p.numel() * p.itemsize for p in model.parameters())
        most = peak_gib(run, place.device, held=held)
    layers = stack_work(body, row.batch, 1, place.dtype.itemsize)
    work = layers + Work(0.0, tensor_bytes(state))
    return records_of(name, row, place, ms=ms, work=work, peak_gib=most)


def _inputs(body: Stack, batch: int, place: Place) -> tuple[State, Tensor, Tensor]:
    """A state as after some tokens, an iterate, and an injection."""
    device, width = place.device, len(body.norm_f.weight)
    x_BTD = noise((batch, CAPACITY // 2, width), device)
    with torch.no_grad(), place.computing():
        _, state = body(x_BTD, body.init_state(batch, CAPACITY))
    injection_B1E = noise((batch, 1, body.inject_width), device, dtype=place.dtype)
    return state, x_BTD[:, :1].clone(), injection_B1E


def _copied(state: State) -> State:
    return tree.map_(torch.clone, state)


def _wide(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf.clone()


def _named(result: tuple[Tensor, State]) -> dict[str, Tensor]:
    y_B1D, state = result
    leaves = [leaf for leaf in tree.leaves(state) if leaf.is_floating_point()]
    return {"the output": y_B1D} | {f"state {n}": leaf for n, leaf in enumerate(leaves)}
