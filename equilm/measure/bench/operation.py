"""One operation to time: how it is called, on what, and how it is held against its plain twin.

Read `operations.py` for the list of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.measure.bench.clock import Run, cache_bytes, head_start, median_ms
from equilm.measure.bench.floors import Work, tensor_bytes
from equilm.measure.bench.place import Place
from equilm.measure.bench.tested import compare
from equilm.nn.linear import prepared
from equilm.tasks import IGNORE

REPEATS = 20
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A function of tensors whose rows do not depend on each other.

    Args:
        run: Takes `rows`, then `weights`; under autocast where the trainer would be.
        rows: Tensors with the batch first. Integers are targets, of which IGNORE leaves one out.
        weights: What all rows share.
        twin: The plain form, given float64; `None` means `run`, which uses no kernel then.
        flops: Of the forward pass; the backward pass has twice as many.
        bytes: To move in the forward pass, and in the backward pass. `None` means every input and
            output once, and then every input, cotangent and gradient once.
        module: Whose constants are made once a forward, so before a forward pass alone is timed.
    """

    run: Callable[..., Outputs]
    rows: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] = ()
    twin: Callable[..., Outputs] | None = None
    flops: float = 0.0
    bytes: tuple[float, float] | None = None
    module: nn.Module | None = None


def check(name: str, operation: Operation, place: Place) -> None:
    """Compare outputs and gradients of the first and the last row with the twin's, in float64.

    The operation runs at the size that is timed. Only those two rows have a cotangent, so that the
    gradients of what all rows share are theirs as well.

    Raises:
        Wrong: If they differ.
    """
    op, last = operation, len(operation.rows[0]) - 1
    picked = torch.tensor(sorted({0, last}), device=place.device)
    asked = tuple(_ask(part, picked) for part in op.rows)
    got = _answers(_computed(op, place), asked, op.weights, picked)
    rows, weights = (tuple(map(_wide, parts)) for parts in (op.rows, op.weights))
    rows = tuple(part[picked] for part in rows)
    expected = _answers(op.twin or op.run, rows, weights, torch.arange(len(picked)))
    compare(name, got, expected, place.dtype)


def of_module(
    module: nn.Module,
    call: Callable[..., Outputs],
    rows: tuple[Tensor, ...],
    place: Place,
    *,
    flops: float,
    bytes: float,
) -> Operation:
    """A module as a function of its inputs and its parameters.

    Args:
        module: Its matrices are taken in the type of products, its vectors as they are.
        call: Takes what calls the module, then `rows`.
        rows: As in `Operation`.
        place: Gives the type of products.
        flops: Of the forward pass.
        bytes: To move in the forward pass; the backward pass moves twice as many.
    """
    names = [name for name, _ in module.named_parameters()]
    weights = tuple(p.to(place.dtype) if p.ndim > 1 else p for p in module.parameters())

    def run(*tensors: Tensor) -> Outputs:
        parameters = dict(zip(names, tensors[len(rows) :], strict=True))

        def forward(*arguments: object) -> Any:
            return torch.func.functional_call(module, parameters, arguments)

        return call(forward, *tensors[: len(rows)])

    moved = (bytes, 2 * bytes)
    return Operation(run=run, rows=rows, weights=weights, flops=flops, bytes=moved, module=module)


def product(x_BTD: Tensor, weight_ED: Tensor) -> Operation:
    """The product of tokens with a weight."""

    def run(x_BTD: Tensor, weight_ED: Tensor) -> Outputs:
        return (F.linear(x_BTD, weight_ED),)

    flops = 2.0 * x_BTD.shape[:2].numel() * weight_ED.numel()
    return Operation(run=run, rows=(x_BTD,), weights=(weight_ED,), flops=flops)


def forward_ms(operation: Operation, place: Place, *, repeats: int | None = None) -> float:
    """Return the median time of a forward pass without gradient, launching not included."""
    run = _computed(operation, place)
    runs = [partial(run, *rows, *operation.weights) for rows in _copies(operation, place)]
    with torch.no_grad(), place.computing(), prepared(operation.module or nn.Identity()):
        before = head_start(place.device)
        return median_ms(runs, place.device, repeats=repeats or REPEATS, before=before)


def both_ms(operation: Operation, place: Place, *, repeats: int | None = None) -> float:
    """Return the median time of a forward and a backward pass, launching not included."""
    runs = [_forward_backward(operation, place, rows) for rows in _copies(operation, place)]
    before = head_start(place.device)
    return median_ms(runs, place.device, repeats=repeats or REPEATS, before=before)


def works(operation: Operation, place: Place) -> tuple[Work, Work]:
    """Return the work of a forward pass, and of both."""
    with torch.no_grad(), place.computing():
        outputs = operation.run(*operation.rows, *operation.weights)
    inputs = tensor_bytes(operation.rows) + tensor_bytes(operation.weights)
    written = tensor_bytes(outputs)
    there, back = operation.bytes or (inputs + written, 2 * inputs + written)
    forward = Work(operation.flops, there)
    return forward, forward + Work(2 * operation.flops, back)


def _computed(operation: Operation, place: Place) -> Callable[..., Outputs]:
    """The forward pass under autocast, as in training, where the backward pass is not."""

    def run(*tensors: Tensor) -> Outputs:
        with place.computing():
            return operation.run(*tensors)

    return run


def _forward_backward(operation: Operation, place: Place, rows: Outputs) -> Run:
    run = _computed(operation, place)
    inputs = (*_leaves(rows), *_leaves(operation.weights))
    wanted = [leaf for leaf in inputs if leaf.requires_grad]
    cotangents = [torch.randn_like(output) for output in run(*inputs)]
    return lambda: torch.autograd.grad(run(*inputs), wanted, cotangents)


def _copies(operation: Operation, place: Place) -> list[tuple[Tensor, ...]]:
    """As many copies of the rows as together are three times the cache, two at least."""
    size = max(1.0, tensor_bytes(operation.rows))
    count = min(16, max(2, round(3 * cache_bytes(place.device) / size)))
    return [tuple(_like(part) for part in operation.rows) for _ in range(count)]


def _like(part: Tensor) -> Tensor:
    """A copy with the same strides, gaps included: slices of a projection stay slices."""
    size = sum((n - 1) * step for n, step in zip(part.shape, part.stride(), strict=True)) + 1
    store = part.new_empty(size).as_strided(part.shape, part.stride())
    return store.copy_(part)


def _answers(
    run: Callable[..., Outputs], rows: Outputs, weights: Outputs, picked: Tensor
) -> dict[str, Tensor]:
    """Outputs, and gradients of a random sum of them, at the rows picked."""
    rows, weights = _leaves(rows), _leaves(weights)
    outputs = [_at(output, picked) for output in run(*rows, *weights)]
    device = rows[0].device
    generator = torch.Generator(device).manual_seed(2)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for output in outputs:
        weight = torch.randn(output.shape, generator=generator, dtype=loss.dtype, device=device)
        loss = loss + (output.double() * weight).sum()
    leaves = {f"row input {n}": part for n, part in enumerate(rows)}
    leaves |= {f"shared input {n}": part for n, part in enumerate(weights)}
    leaves = {name: part for name, part in leaves.items() if part.requires_grad}
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {f"output {n}": output.detach() for n, output in enumerate(outputs)}
    for name, gradient in zip(leaves, gradients, strict=True):
        found[f"the gradient of {name}"] = _at(gradient, picked) if "row" in name else gradient
    return found


def _leaves(parts: Sequence[Tensor]) -> Outputs:
    return tuple(part.detach().requires_grad_(part.is_floating_point()) for part in parts)


def _ask(part: Tensor, picked: Tensor) -> Tensor:
    """Leave all targets out but those of the rows picked; what is no target stays."""
    if part.is_floating_point():
        return part
    return torch.full_like(part, IGNORE).index_copy(0, picked, part[picked])


def _at(part: Tensor, picked: Tensor) -> Tensor:
    return part[picked.to(part.device)] if part.ndim else part


def _wide(part: Tensor) -> Tensor:
    return part.double() if part.is_floating_point() else part
