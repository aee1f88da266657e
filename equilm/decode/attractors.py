"""The finitely many states that a trained tracker's tokens lead between, found and followed.

    found = discover(model)
    model.core.solve = steady(model.core.solve)
    logits_BTV = found.answer(model, tokens_BT)

What a token does in each state is solved once, for a table whose size has nothing to do with the
length of a sequence. Following the table gives every token's state by a parallel prefix, and so a
guess of its fixed point; the solve that begins there answers for itself, by its residuals. Read
`equilm/solve/guessed.py` for that solve.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from equilm import tree
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.linear import prepared
from equilm.nn.mixer import State
from equilm.nn.model import LanguageModel
from equilm.solve.iterate import CycleRule, Solve, iterate
from equilm.solve.picard import Picard
from equilm.solve.prefix import states_before

ROWS = 2**12  # tokens solved side by side, each from its own state


@dataclass(frozen=True, kw_only=True)
class Attractors:
    """What every token does in every state; state 0 is the one before the first token.

    Args:
        next_QV: int64, the state after a token.
        z_QVD: The token's fixed point.
        looks_QD: The direction of the output that led into each state but the first.
        others: States of the model of the same kinds, reached in other ways where there are some.
        sweeps: Dependent evaluations that it took to find them, all tokens of a level at once.
        evaluations: Of single tokens.
    """

    next_QV: Tensor
    z_QVD: Tensor
    looks_QD: Tensor
    others: State
    sweeps: int
    evaluations: int

    def guess(self, tokens_BT: Tensor) -> Tensor:
        """Return z_BTD, near the fixed points of sequences that begin in the state before them."""
        first_B = tokens_BT.new_zeros(len(tokens_BT))
        before_BT = states_before(self.next_QV.T[tokens_BT], first_B)
        return self.z_QVD[before_BT, tokens_BT]

    @torch.no_grad()
    def answer(self, model: LanguageModel, tokens_BT: Tensor) -> Tensor:
        """Return the logits of sequences, solved by the model's own settings from the guess.

        All tokens are swept at once, at most `max_steps` times; what is open then is solved in the
        model's windows.
        """
        y_BTD, _ = model.core(model.embed(tokens_BT), guess_BTD=self.guess(tokens_BT))
        return model.logits(y_BTD)


def steady(solve: Solve) -> Solve:
    """The same solve in shorter steps, with an earlier cycle rule, looked at after every sweep.

    All tokens are swept until the last has settled, and on trackers those that swing are the last:
    LOG.md, "parallel depth".
    """
    cycle = CycleRule(patience=4)
    return replace(solve, solver=Picard(damping=0.6), cycle=cycle, check_every=1)


@torch.no_grad()
def discover(
    model: LanguageModel,
    *,
    apart: float = 0.7,
    max_states: int = 512,
    tolerance: float = 0.05,
    max_steps: int = 12,
) -> Attractors:
    """Run every token from every state, breadth first, until no new state turns up.

    Two states are one where the outputs of the tokens that led into them point nearly the same way.

    Args:
        model: Implicit, in evaluation mode; solved in `steady` steps.
        apart: Distance of two directions, in (0, 2), from which they are of two states.
        max_states: How many there may be, ≥ 1.
        tolerance: Of a token's solve; it makes guesses, so it may be rough.
        max_steps: Evaluations a token may take.

    Raises:
        ValueError: For an explicit model; or if there are more states.
    """
    core = model.core
    if not isinstance(core, Equilibrium):
        raise ValueError("model: expected an implicit one, whose tokens are solved")
    limits = replace(steady(core.solve), tolerance=tolerance, max_steps=max_steps, check_every=1)
    with prepared(core):
        return _Search(model, core, limits, apart, max_states).run()


@torch.no_grad()
def doubts(
    model: LanguageModel, found: Attractors, *, tolerance: float = 0.05, max_steps: int = 12
) -> float:
    """Return the share of transitions that another state of the same kind does not make.

    Zero where nothing else of the past matters. Where it is not, either a kind was counted twice,
    which does no harm, or the tables may lead astray.

    Args:
        model: That `found` is of.
        found: From `discover`.
        tolerance: As for `discover`.
        max_steps: As for `discover`.
    """
    core = model.core
    assert isinstance(core, Equilibrium)
    limits = replace(steady(core.solve), tolerance=tolerance, max_steps=max_steps)
    with prepared(core):
        search = _Search(model, core, limits, 0.0, 0)
        ways = [search.solved(states)[0] for states in _in_turn(found.others, search.size)]
    look_ND = normalize(torch.cat(ways).flatten(0, 1).to(found.looks_QD.dtype), dim=-1)
    next_N = torch.cdist(look_ND, found.looks_QD).argmin(1) + 1
    return float((next_N != found.next_QV[1:].flatten()).float().mean())


class _Search:
    """The states found so far, by the directions of the outputs that led there."""

    def __init__(
        self, model: LanguageModel, core: Equilibrium, solve: Solve, apart: float, most: int
    ) -> None:
        self.core, self.solve, self.apart, self.most = core, solve, apart, most
        tokens_V1 = torch.arange(model.vocab_size, device=model.embedding.device)[:, None]
        self.u_V1E = core.inject(model.embed(tokens_V1))
        self.size = max(1, ROWS // len(tokens_V1))  # states at once
        self.looks_QD = self.u_V1E.new_empty(0, core.width)
        self.evaluations = 0

    def run(self) -> Attractors:
        # Each level holds the states that the one before led to first.
        level, tables, outputs, sweeps = self.core.init_state(1, self.most), [], [], 0
        others = tree.take(level, torch.zeros(0, dtype=torch.int64))
        while len(next(tree.leaves(level))):
            found, took = [], 0
            for states in _in_turn(level, self.size):
                z_KVD, after, evaluations = self.solved(states)
                names_N, new = self._named(z_KVD.flatten(0, 1))
                tables.append(names_N.view(z_KVD.shape[:2]))
                outputs.append(z_KVD)
                found.append(tree.take(after, new))
                others = self._kept(others, names_N, after)
                took = max(took, evaluations)
            level, sweeps = tree.map_(lambda *parts: torch.cat(parts), *found), sweeps + took
        return Attractors(
            next_QV=torch.cat(tables),
            z_QVD=torch.cat(outputs),
            looks_QD=self.looks_QD,
            others=others,
            sweeps=sweeps,
            evaluations=self.evaluations,
        )

    def _kept(self, others: State, names_N: Tensor, after: State) -> State:
        """One state of each kind: the last that was reached, which is seldom the first one too."""
        num = len(next(tree.leaves(others)))
        last_Q = torch.full((len(self.looks_QD),), -1, device=names_N.device)
        rows_N = torch.arange(len(names_N), device=names_N.device)
        last_Q = last_Q.scatter_reduce(0, names_N - 1, rows_N, "amax")
        grown = tree.map_(
            lambda old, new: torch.cat([old, new[: len(last_Q) - num]]), others, after
        )
        reached_K = (last_Q >= 0).nonzero()[:, 0]
        return tree.put(grown, reached_K, tree.take(after, last_Q[reached_K]))

    def solved(self, states: State) -> tuple[Tensor, State, int]:
        """Every token from every state: outputs z_KVD, states after (K·V rows), sweeps."""
        tokens = len(self.u_V1E)
        rows = tree.map_(lambda leaf: leaf.repeat_interleave(tokens, dim=0), states)
        u_N1E = self.u_V1E.repeat(len(next(tree.leaves(states))), 1, 1)
        found = iterate(
            lambda z_N1D: self.core.body(z_N1D, rows, u_N1E),
            self.core.zeros(len(u_N1E), 1),
            self.solve,
            chain=True,
        )
        z_N1D, after = found.last or self.core.body(found.value, rows, u_N1E)
        extra = int(found.last is None)
        self.evaluations += int(found.steps.sum()) + extra * len(u_N1E)
        return z_N1D.view(-1, tokens, self.core.width), after, found.sweeps + extra

    def _named(self, z_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The state that each output leads into; and which outputs led into new ones."""
        look_ND = normalize(z_ND.to(self.looks_QD.dtype), dim=-1)
        known_N1 = look_ND.new_full((len(look_ND), 1), self.apart)
        # Unknown ones are at `apart` from a nought in front, the state before all tokens.
        near_N, names_N = torch.cat([known_N1, torch.cdist(look_ND, self.looks_QD)], 1).min(1)
        new = []
        while bool((names_N == 0).any()):
            first = int((names_N == 0).nonzero()[0])
            new.append(first)
            self.looks_QD = torch.cat([self.looks_QD, look_ND[first : first + 1]])
            if len(self.looks_QD) > self.most:
                raise ValueError(
                    f"model: expected tokens to lead between {self.most} states at most, got more"
                )
            distance_N = torch.linalg.vector_norm(look_ND - look_ND[first], dim=-1)
            closer_N = distance_N < near_N
            names_N = torch.where(closer_N, len(self.looks_QD), names_N)
            near_N = torch.where(closer_N, distance_N, near_N)
        return names_N, torch.tensor(new, dtype=torch.int64, device=z_ND.device)


def _in_turn(states: State, size: int) -> Iterator[State]:
    """Some rows at a time."""
    for at in range(0, len(next(tree.leaves(states))), size):
        yield tree.map_(lambda leaf, at=at: leaf[at : at + size], states)
