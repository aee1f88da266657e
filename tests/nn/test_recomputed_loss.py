"""A loss whose blocks are computed again in the backward pass is the same loss."""

import pytest
import torch

from equilm.nn.model import LanguageModel
from equilm.solve import Solve
from tests.nn.build import equilibrium_model, language_model


def model_of(kind: str) -> LanguageModel:
    if kind == "explicit":
        return language_model("mamba2", dropout=0.5)
    solve = Solve(tolerance=0.0, max_steps=4, cycle=None)
    return equilibrium_model("mamba2", solve=solve, dropout=0.5)


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_recompute_changes_no_number(kind: str) -> None:
    model = model_of(kind).train()
    tokens_BT = torch.randint(11, (2, 7))
    results = []
    for recompute in (False, True):
        model.recompute = recompute
        torch.manual_seed(0)
        found = model.loss(tokens_BT, tokens_BT, ignore=-100)
        gradients = torch.autograd.grad(found.loss_sum, list(model.parameters()))
        results.append([found.loss_sum, *gradients])
    for kept, again in zip(*results, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-12, atol=1e-14)
