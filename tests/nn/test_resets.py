"""Documents that share a row: what training sees is what each of them gives apart."""

import pytest
import torch

from equilm.nn.model import LanguageModel
from equilm.solve import Implicit, Phantom, Solve
from tests.nn.build import equilibrium_model, language_model, tokens_of
from tests.tolerance import assert_close

IGNORE, END = -100, 0
SIZES = (5, 1, 9, 3)


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of documents, each opened by the end token."""
    tokens_BT = tokens_of(2, sum(SIZES)).clamp(min=1)
    edges = [sum(SIZES[:n]) for n in range(len(SIZES))]
    tokens_BT[:, edges] = END
    return tokens_BT, tokens_BT.roll(-1, dims=1)


def losses_and_gradients(
    model: LanguageModel, rows: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    total = torch.stack(
        [model.loss(tokens, targets, ignore=IGNORE).loss_sum for tokens, targets in rows]
    ).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()))
    return total, list(gradients)


@pytest.mark.parametrize("kind", ["mamba2", "attention", "retnet", "deltanet", "rwkv6"])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_packed_documents_have_the_loss_and_gradient_of_separate_ones(
    kind: str, implicit: bool, recompute: bool
) -> None:
    if implicit:
        solve = Solve(tolerance=1e-13, max_steps=400, cycle=None)
        gradient = Implicit(solve=solve) if not recompute else Phantom(steps=3)
        model = equilibrium_model(kind, num_layers=1, solve=solve, gradient=gradient)
    else:
        model = language_model(kind)
    model.recompute = recompute
    model.reset_at(END)
    tokens_BT, targets_BT = packed()
    got, got_gradients = losses_and_gradients(model, [(tokens_BT, targets_BT)])
    model.reset_at(None)
    apart = list(zip(tokens_BT.split(SIZES, dim=1), targets_BT.split(SIZES, dim=1), strict=True))
    want, want_gradients = losses_and_gradients(model, apart)
    assert_close("loss" if not implicit else "equilibrium", got, want)
    for one, other in zip(got_gradients, want_gradients, strict=True):
        assert_close("gradient" if not implicit else "equilibrium", one, other)
    # The comparison can fail: without resets the documents do see each other.
    through, _ = losses_and_gradients(model, [(tokens_BT, targets_BT)])
    assert (through - want).abs() > 1e-4 * want.abs()


def test_a_mixer_that_knows_no_resets_is_named() -> None:
    model = language_model("mamba2")
    model.core.takes_starts = False
    with pytest.raises(ValueError, match=r"got mamba2, which cannot; .* task\.boundaries=carry"):
        model.reset_at(END)
    model.reset_at(None)
