"""Blocks computed again in the backward pass give the same gradients and keep less."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from equilm.nn.block import Block
from equilm.nn.linear import Prepared
from equilm.nn.model import LanguageModel
from equilm.nn.recompute import recomputed
from tests.nn.build import SMALL, equilibrium_model, language_model, tokens_of

once = partial(checkpoint, use_reentrant=False)


def model_of(kind: str, explicit: bool) -> LanguageModel:
    build = language_model if explicit else equilibrium_model
    return build(kind, weight_norm=True, dropout=0.5).train()


def run(model: LanguageModel, *, again: Any = None) -> tuple[Tensor, list[Any], int]:
    """Return the loss, the gradients, and how many bytes were kept for them."""
    kept: dict[int, int] = {}

    def pack(leaf: Tensor) -> Tensor:
        kept[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
        return leaf

    def loss() -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda leaf: leaf):
            return model(tokens_of(2, 24))[0].square().mean()

    torch.manual_seed(0)
    if again:
        with recomputed(model.core, again):
            value = loss()
    else:
        value = loss()
    model.zero_grad()
    value.backward()
    return value.detach(), [p.grad for p in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("reentrant", [True, False])
def test_the_same_gradients_from_less(kind: str, explicit: bool, reentrant: bool) -> None:
    model = model_of(kind, explicit)
    value, gradients, kept = run(model)
    again = partial(checkpoint, use_reentrant=reentrant)
    value_again, gradients_again, kept_again = run(model, again=again)
    assert torch.equal(value, value_again)
    for one, other in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)
    assert kept_again < 0.5 * kept


def test_blocks_are_called_twice_only_where_a_gradient_is_wanted() -> None:
    model = model_of("mamba2", explicit=True)
    calls = []
    for block in (part for part in model.modules() if isinstance(part, Block)):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    with recomputed(model.core, once):
        loss = model(tokens_of(2, 5))[0].sum()
        with torch.no_grad():
            model(tokens_of(2, 5))
        assert len(calls) == 4
    loss.backward()
    assert len(calls) == 6
    model(tokens_of(2, 5))[0].sum().backward()
    assert len(calls) == 8


def test_what_is_held_is_let_go() -> None:
    model = model_of("mamba2", explicit=False)

    def held() -> list[bool]:
        return [part.is_prepared() for part in model.modules() if isinstance(part, Prepared)]

    before = held()
    with recomputed(model.core, once):
        loss = model(tokens_of(2, 5))[0].sum()
    assert held() == before
    loss.backward()
    assert held() == before
