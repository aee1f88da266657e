"""Every mixer but Mamba2 and attention, of which there is more, has an implicit one that trains."""

import pytest
import torch

from equilm.solve import Solve
from equilm.tasks import cross_entropy_sum
from tests.nn.build import equilibrium_model

KINDS = ["elman", "gru", "lstm", "orthogonal", "qrnn", "lru", "s4", "s4d", "dss", "s5", "s6"]
KINDS += ["local", "rglru", "h3", "hyena", "sru", "liquid_s4"]
KINDS += ["linear_attention", "retnet", "gla", "hgrn2", "deltanet", "deltaproduct"]
KINDS += ["rwkv6", "mingru"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_inside_an_equilibrium(kind: str) -> None:
    solve = Solve(tolerance=1e-2, max_steps=20)
    model = equilibrium_model(kind, num_layers=1, mlp_hidden=None, solve=solve).float()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    tokens_BT = torch.randint(11, (8, 6))
    losses: list[float] = []
    while len(losses) < 80 and (not losses or losses[-1] >= 0.5 * losses[0]):
        loss, count = cross_entropy_sum(model(tokens_BT)[0], tokens_BT)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append((loss / count).item())
    assert losses[-1] < 0.5 * losses[0]
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), f"{name} has no gradient"
