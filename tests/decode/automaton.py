"""A tracker made by hand: an equilibrium whose attractors are the elements of a monoid."""

from typing import NamedTuple

import torch
from torch import Tensor

from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.mixer import Mixer
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve import Picard, Solve
from equilm.tasks import WordProblem, WordProblemConfig


class Last(NamedTuple):
    """The fixed point of the token before."""

    z_BD: Tensor


class Automaton(Mixer):
    """F(z) = product − 0.3 (z − product) + 0.1 z before, product = the one of z before and token.

    The product is a soft look-up, and the last term a memory that fades, so that a state is near
    an element and never quite at it.
    """

    def __init__(self, table_QQ: Tensor, identity: int) -> None:
        super().__init__()
        self.table_QQ, self.inject_width = table_QQ, len(table_QQ)
        self.empty_D = torch.eye(len(table_QQ))[identity]

    def init_state(self, batch: int, capacity: int) -> Last:
        return Last(self.empty_D.repeat(batch, 1))

    def forward(
        self,
        x_BTD: Tensor,
        state: Last | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, Last]:
        assert inject_BTE is not None
        first_BD = (state or self.init_state(len(x_BTD), 1)).z_BD
        every = torch.cat([first_BD[:, None], x_BTD], dim=1)
        # How far each element leads to each other one, by this token.
        leads_VQQ = torch.nn.functional.one_hot(self.table_QQ).to(x_BTD.dtype).transpose(0, 1)
        chance_BTQ = (8 * every[:, :-1]).softmax(-1)
        product = torch.einsum("btq,btqr->btr", chance_BTQ, leads_VQQ[inject_BTE.argmax(-1)])
        z_BTD = product - 0.3 * (x_BTD - product) + 0.1 * every[:, :-1]
        if valid_B is None:
            valid_B = torch.full((len(x_BTD),), x_BTD.shape[1])
        return z_BTD, Last(every[torch.arange(len(every)), valid_B])

    def flops_per_token(self, length: int) -> float:
        return 0.0


def tracker(group: str) -> tuple[LanguageModel, WordProblem]:
    """Return a model that answers the word problem of a monoid rightly, and the problem."""
    task = WordProblem(WordProblemConfig(group=group))
    order = task.vocab_size
    solve = Solve(solver=Picard(damping=0.8), tolerance=1e-4, max_steps=64)
    config = ModelConfig(
        vocab_size=order,
        width=order,
        num_layers=1,
        mixer=Mamba2Config(expand=1, head_width=order),
        equilibrium=EquilibriumConfig(solve=solve),
    )
    model = LanguageModel(config)
    body = Automaton(task.monoid.table_QQ, task.monoid.identity)
    model.core = Equilibrium(EquilibriumConfig(solve=solve), body, order, weight_norm=False)
    with torch.no_grad():
        torch.nn.init.eye_(model.embedding)
        torch.nn.init.eye_(model.core.injection.weight)
        assert model.core.injection.bias is not None
        torch.nn.init.zeros_(model.core.injection.bias)
        torch.nn.init.ones_(model.core.injection_norm.weight)
    return model.eval(), task
