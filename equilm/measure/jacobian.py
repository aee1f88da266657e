"""Theorem 1: the state map h_{t−1} → h_t of an implicit model has a full Jacobian.

    ∂h*_t/∂h*_{t−1} = S_h + S_z (I − F_z)^{−1} F_h

with z = F(z, h_{t−1}) the fixed point of the last token and h_t = S(z, h_{t−1}) one evaluation's
state. S_h is what an explicit stack has: block triangular in the layers, and diagonal within the
scan of a layer. Here h is every number of the state, layer by layer, in the order of
`tree.leaves`: for Mamba2 the convolution window, then the scan. Read `equilm/solve/gradient.py`
for how autograd goes through the solve.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from equilm import tree
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.linear import prepared
from equilm.nn.mixer import Mixer, State
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve import Anderson, Implicit, NotConverged, Solve, Status

SHOWN = 48  # numbers of the state in a figure
LARGEST = 4_096  # numbers of the state of a model that is drawn
TIGHT = Solve(solver=Anderson(), tolerance=1e-12, max_steps=500, cycle=None)


def state_jacobian_autograd(
    model: LanguageModel, tokens_1T: Tensor, *, numbers: slice = slice(None)
) -> Tensor:
    """∂h_t/∂h_{t−1} at the last token, by autograd: for implicit models through the solve.

    Args:
        model: Recurrent, implicit or explicit; a copy of it is used in float64, without dropout.
        tokens_1T: (1, T) one sequence, T ≥ 1.
        numbers: Which M of the state's numbers; all of them, unless it is large.

    Returns:
        (M, M) float64: rows are numbers of h_t, columns of h_{t−1}.

    Raises:
        ValueError: For a model whose state grows, or more than one sequence.
        NotConverged: If the last token has no fixed point within 1e-12, or no gradient there.
    """
    core, x_11D, state = _last_step(model, tokens_1T)

    def next_state(h_M: Tensor) -> Tensor:
        _, after = core(x_11D, _unflatten(h_M, state))
        return _flatten(after)[numbers]

    if isinstance(core, Equilibrium):
        _fixed_point(core, x_11D, state)
    found_MM: Tensor = jacobian(next_state, _flatten(state))
    return found_MM[:, numbers]


def state_jacobian_theorem(
    model: LanguageModel, tokens_1T: Tensor, *, numbers: slice = slice(None)
) -> Tensor:
    """S_h + S_z (I − F_z)^{−1} F_h at the last token, from the partials of one evaluation.

    Args:
        model: Recurrent and implicit; a copy of it is used in float64, without dropout.
        tokens_1T: (1, T) one sequence, T ≥ 1.
        numbers: As for `state_jacobian_autograd`.

    Returns:
        (M, M) float64, as `state_jacobian_autograd`.

    Raises:
        ValueError: For an explicit model, one whose state grows, or more than one sequence.
        NotConverged: If the last token has no fixed point within 1e-12.

    Source: arXiv 2502.07827, Theorem 1, for an F that takes h_{t−1}.
    """
    p = _partials(model, tokens_1T, numbers)
    eye_DD = torch.eye(len(p.f_z), dtype=p.f_z.dtype, device=p.f_z.device)
    return p.s_h + p.s_z @ torch.linalg.solve(eye_DD - p.f_z, p.f_h)


def state_jacobian_explicit(
    model: LanguageModel, tokens_1T: Tensor, *, numbers: slice = slice(None)
) -> Tensor:
    """S_h at the last token's fixed point: the Jacobian that one evaluation alone would have.

    Args, returns and raises as `state_jacobian_theorem`.
    """
    return _partials(model, tokens_1T, numbers).s_h


def jacobian_records(model: LanguageModel, tokens_1T: Tensor) -> Iterator[Record]:
    """Yield the three Jacobians of a part of the last layer's state, a Record a matrix row.

    Nothing is yielded for a model without such a state, a large one, or a token without a fixed
    point.

    Args:
        model: Any implicit model.
        tokens_1T: (1, T) one sequence, T ≥ 1.
    """
    sizes = [leaf.numel() for leaf in tree.leaves(model.init_state(1, tokens_1T.shape[1]))]
    if sum(sizes) > LARGEST or not _is_recurrent(model.init_state(1, 1)):
        return
    first = sum(sizes[:-1])
    numbers = slice(first, first + min(SHOWN, sizes[-1]))
    tokens_1T = tokens_1T.to(model.embedding.device)
    try:
        matrices = {
            "jacobian_autograd": state_jacobian_autograd(model, tokens_1T, numbers=numbers),
            "jacobian_theorem1": state_jacobian_theorem(model, tokens_1T, numbers=numbers),
            "jacobian_explicit": state_jacobian_explicit(model, tokens_1T, numbers=numbers),
        }
    except NotConverged:
        return
    for name, matrix_MM in matrices.items():
        for row, values in enumerate(matrix_MM.tolist()):
            yield Record(name=name, value=values, unit="1", row=row)


class _Partials(NamedTuple):
    f_z: Tensor  # (D, D)
    f_h: Tensor  # (D, M)
    s_z: Tensor  # (M, D)
    s_h: Tensor  # (M, M)


def _partials(model: LanguageModel, tokens_1T: Tensor, numbers: slice) -> _Partials:
    core, x_11D, state = _last_step(model, tokens_1T)
    if not isinstance(core, Equilibrium):
        raise ValueError("model: expected an implicit model, got an explicit one")
    z_11D = _fixed_point(core, x_11D, state)
    with prepared(core):
        u_11E = core.inject(x_11D)

        def evaluate(z_D: Tensor, h_M: Tensor) -> tuple[Tensor, Tensor]:
            image_11D, after = core.body(z_D.view_as(z_11D), _unflatten(h_M, state), u_11E)
            return image_11D.flatten(), _flatten(after)[numbers]

        (f_z, f_h), (s_z, s_h) = jacobian(evaluate, (z_11D.flatten(), _flatten(state)))
    return _Partials(f_z, f_h[:, numbers], s_z, s_h[:, numbers])


def _last_step(model: LanguageModel, tokens_1T: Tensor) -> tuple[Mixer, Tensor, State]:
    """The core in float64, the last token's embedding, and the state before that token."""
    if len(tokens_1T) != 1:
        raise ValueError(f"tokens: expected one sequence, got {len(tokens_1T)}")
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    if isinstance(model.core, Equilibrium):
        model.core.solve, model.core.gradient = TIGHT, Implicit(solve=TIGHT)
    state = model.init_state(1, tokens_1T.shape[1])
    if not _is_recurrent(state):
        raise ValueError("model: expected a recurrent model, got one whose state grows")
    if tokens_1T.shape[1] > 1:
        with torch.no_grad():
            _, state = model(tokens_1T[:, :-1], state)
    return model.core, model.embed(tokens_1T[:, -1:]), state


def _fixed_point(core: Equilibrium, x_11D: Tensor, state: State) -> Tensor:
    with torch.no_grad(), observed(core) as found:
        core(x_11D, state)
    (solution,) = found
    if (solution.status != Status.CONVERGED).any():
        residual = float(solution.residual.max())
        raise NotConverged(f"state Jacobian: the last token ended at a residual of {residual:.1e}")
    return solution.value


def _is_recurrent(state: State) -> bool:
    return all(leaf.is_floating_point() for leaf in tree.leaves(state))


def _flatten(state: State) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree.leaves(state)])


def _unflatten(h_M: Tensor, like: State) -> State:
    pieces = iter(h_M.split([leaf.numel() for leaf in tree.leaves(like)]))
    return tree.map_(lambda leaf: next(pieces).view_as(leaf), like)
