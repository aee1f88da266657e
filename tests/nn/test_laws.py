"""The seven laws of `equilm/nn/mixer.py`, over every mixer and its stacks and equilibria."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from equilm import tree
from equilm.nn.attention import AttentionState
from equilm.nn.mixer import Mixer, State
from equilm.nn.model import MIXERS
from equilm.solve import Implicit, Picard, Solve
from tests.nn.build import WIDTH, equilibrium_model, language_model
from tests.tolerance import assert_close

ROWS, TOKENS = 3, 4
FORMS = [
    "mixer",
    "mixer-injected",
    "stack",
    "stack-injected",
    "equilibrium-at-once",
    "equilibrium-injected-window-1",
    "equilibrium-window-2",
]


# Stacks and equilibria treat all mixers alike, so that most need not go through every form. An
# equilibrium takes other paths while autograd records; most mixers do not.
PUBLISHED = ("mamba2", "attention")
RECORDING, NOT_RECORDING = "recording", "not-recording"
SOME = [
    ("mixer-injected", RECORDING),
    ("equilibrium-window-2", RECORDING),
    ("equilibrium-window-2", NOT_RECORDING),
]
ALL = [(form, how) for form in FORMS for how in (RECORDING, NOT_RECORDING)]
CASES = [(kind, *rest) for kind in MIXERS for rest in (ALL if kind in PUBLISHED else SOME)]


@pytest.fixture(params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    kind, form, how = request.param
    return str(kind), str(form), str(how)


@pytest.fixture
def form(case: tuple[str, str, str]) -> str:
    return case[1]


@pytest.fixture
def mixer(case: tuple[str, str, str]) -> Mixer:
    kind, form, _ = case
    if form.startswith("equilibrium"):
        window = int(form[-1]) if form[-1].isdigit() else None
        solve = Solve(
            solver=Picard(damping=1.0), tolerance=1e-7, max_steps=100, cycle=None, window=window
        )
        return equilibrium_model(kind, num_layers=1, solve=solve, gradient=Implicit()).core
    stack = language_model(kind).core
    mixer = stack if form.startswith("stack") else stack.get_submodule("layers.0.mixer")
    assert isinstance(mixer, Mixer)
    return mixer


@pytest.fixture
def operation(form: str) -> str:
    """The row of the table of tolerances."""
    return "equilibrium" if form.startswith("equilibrium") else "mixer"


@pytest.fixture(autouse=True)
def gradients(case: tuple[str, str, str]) -> Iterator[None]:
    with torch.set_grad_enabled(case[2] == RECORDING):
        yield


@pytest.fixture
def inject_BTE(form: str, mixer: Mixer) -> Tensor | None:
    """What a surrounding equilibrium adds, or nothing."""
    if "injected" not in form:
        return None
    return torch.randn(ROWS, TOKENS, mixer.inject_width, dtype=torch.float64)


@pytest.fixture
def x_BTD() -> Tensor:
    return torch.randn(ROWS, TOKENS, WIDTH, dtype=torch.float64)


def part(inject_BTE: Tensor | None, rows: slice, tokens: slice) -> Tensor | None:
    return None if inject_BTE is None else inject_BTE[rows, tokens]


def live(state: State) -> Iterator[Tensor]:
    """The tensors of a state without the scratch slots of attention."""
    if isinstance(state, AttentionState):
        slots_S = torch.arange(state.key_BSHP.shape[1])
        for row, length in enumerate(state.length_B.tolist()):
            yield from (buffer[row, slots_S < length] for buffer in state[:2])
        yield state.length_B
    elif isinstance(state, Tensor):
        yield state
    else:
        for child in state:
            yield from live(child)


def assert_same_state(operation: str, got: State, expected: State) -> None:
    for one, other in zip(live(got), live(expected), strict=True):
        if one.dtype == torch.int64:
            assert torch.equal(one, other)
        else:
            assert_close(operation, one, other)


def filled(mixer: Mixer, x_BTD: Tensor, capacity: int = TOKENS) -> State:
    """A state that has seen four tokens, with room for `capacity` more."""
    before_BTD = torch.randn(len(x_BTD), 4, WIDTH, dtype=torch.float64)
    _, state = mixer(before_BTD, mixer.init_state(len(x_BTD), 4 + capacity))
    return state


def clone(state: State) -> State:
    return tree.map_(torch.clone, state)


def test_causal(mixer: Mixer, x_BTD: Tensor, inject_BTE: Tensor | None, operation: str) -> None:
    y_BTD, _ = mixer(x_BTD, None, inject_BTE)
    for t in (1, TOKENS - 1):
        later_BTD = torch.cat([x_BTD[:, :t], torch.randn_like(x_BTD[:, t:])], dim=1)
        later_BTE = inject_BTE
        if inject_BTE is not None:
            later_BTE = torch.cat([inject_BTE[:, :t], torch.randn_like(inject_BTE[:, t:])], dim=1)
        got_BTD, _ = mixer(later_BTD, None, later_BTE)
        assert_close(operation, got_BTD[:, :t], y_BTD[:, :t])
        assert (got_BTD[:, t] - y_BTD[:, t]).abs().amax() > 1e-3


def test_the_injection_enters_at_every_token(mixer: Mixer, x_BTD: Tensor) -> None:
    inject_BTE = torch.zeros(ROWS, TOKENS, mixer.inject_width, dtype=torch.float64)
    y_BTD, _ = mixer(x_BTD, None, inject_BTE)
    for t in (0, TOKENS - 1):
        changed_BTE = inject_BTE.index_fill(1, torch.tensor(t), 1.0)
        got_BTD, _ = mixer(x_BTD, None, changed_BTE)
        assert (got_BTD[:, t] - y_BTD[:, t]).abs().amax() > 1e-3


@pytest.mark.parametrize("sizes", [[1] * TOKENS, [3, 1]])
def test_chunk(
    mixer: Mixer, x_BTD: Tensor, inject_BTE: Tensor | None, sizes: list[int], operation: str
) -> None:
    state = filled(mixer, x_BTD)
    y_BTD, last = mixer(x_BTD, clone(state), inject_BTE)
    pieces, start = [], 0
    for size in sizes:
        here = slice(start, start + size)
        piece_BTD, state = mixer(x_BTD[:, here], state, part(inject_BTE, slice(None), here))
        pieces.append(piece_BTD)
        start += size
    assert_close(operation, torch.cat(pieces, dim=1), y_BTD)
    assert_same_state(operation, state, last)


def test_value(mixer: Mixer, x_BTD: Tensor, inject_BTE: Tensor | None, operation: str) -> None:
    state = filled(mixer, x_BTD)
    before = clone(state)
    y_BTD, after = mixer(x_BTD, state, inject_BTE)
    for got, want in zip(live(state), live(before), strict=True):
        assert torch.equal(got, want)
    # To reject the tokens is to keep the old state; to accept them is to keep the new one.
    again_BTD, _ = mixer(x_BTD, state, inject_BTE)
    assert torch.equal(again_BTD, y_BTD)
    changed = [
        got.shape != want.shape or not torch.equal(got, want)
        for got, want in zip(live(after), live(state), strict=True)
    ]
    assert all(changed)


def test_row(mixer: Mixer, x_BTD: Tensor, inject_BTE: Tensor | None, operation: str) -> None:
    state = filled(mixer, x_BTD)
    alone = [tree.take(clone(state), torch.tensor([row])) for row in range(ROWS)]
    y_BTD, last = mixer(x_BTD, state, inject_BTE)
    for row in range(ROWS):
        here = slice(row, row + 1)
        got_BTD, after = mixer(x_BTD[here], alone[row], part(inject_BTE, here, slice(None)))
        assert_close(operation, got_BTD, y_BTD[here])
        assert_same_state(operation, after, tree.take(last, torch.tensor([row])))


def test_empty(mixer: Mixer, x_BTD: Tensor, inject_BTE: Tensor | None, operation: str) -> None:
    y_BTD, last = mixer(x_BTD, None, inject_BTE)
    got_BTD, after = mixer(x_BTD, mixer.init_state(ROWS, TOKENS), inject_BTE)
    assert_close(operation, got_BTD, y_BTD)
    assert_same_state(operation, after, last)


@pytest.mark.parametrize("start", ["empty", "filled"])
def test_valid(
    mixer: Mixer, x_BTD: Tensor, inject_BTE: Tensor | None, start: str, operation: str
) -> None:
    valid_B = torch.tensor([0, 2, TOKENS])
    before = None if start == "empty" else filled(mixer, x_BTD)
    fresh = mixer.init_state(ROWS, TOKENS) if before is None else clone(before)
    x_BTD[torch.arange(TOKENS) >= valid_B[:, None]] = 1e6
    y_BTD, last = mixer(x_BTD, before, inject_BTE, valid_B)
    for row, valid in enumerate(valid_B.tolist()):
        here, tokens = slice(row, row + 1), slice(valid)
        expected = tree.take(fresh, torch.tensor([row]))
        if valid:
            short_BTE = part(inject_BTE, here, tokens)
            short_BTD, expected = mixer(x_BTD[here, tokens], expected, short_BTE)
            assert_close(operation, y_BTD[here, tokens], short_BTD)
        assert_same_state(operation, tree.take(last, torch.tensor([row])), expected)


@pytest.mark.parametrize(("start", "ragged"), [("empty", False), ("filled", True)])
def test_reset(mixer: Mixer, start: str, ragged: bool, form: str, operation: str) -> None:
    if not mixer.takes_starts:
        pytest.skip("this mixer knows no resets; a model of it refuses them (test_resets.py)")
    tokens = 9
    starts_BT = torch.zeros(ROWS, tokens, dtype=torch.bool)
    for row, opened in enumerate([(0, 4, 5), (), (2, 8)]):
        starts_BT[row, list(opened)] = True
    valid_B = torch.tensor([5, 9, 7]) if ragged else torch.tensor([tokens] * ROWS)
    x_BTD = torch.randn(ROWS, tokens, WIDTH, dtype=torch.float64)
    inject_BTE = torch.randn(ROWS, tokens, mixer.inject_width, dtype=torch.float64)
    inject = inject_BTE if "injected" in form else None
    before = filled(mixer, x_BTD, tokens) if start == "filled" else None
    fresh = mixer.init_state(ROWS, tokens + 4)
    y_BTD, last = mixer(
        x_BTD,
        None if before is None else clone(before),
        inject,
        valid_B if ragged else None,
        starts_BT,
    )
    for row, valid in enumerate(valid_B.tolist()):
        here, one = slice(row, row + 1), torch.tensor([row])
        state = tree.take(fresh if before is None else before, one)
        edges = [t for t in range(1, valid) if starts_BT[row, t]]
        if starts_BT[row, 0]:
            state = tree.take(fresh, one)
        for begin, end in zip([0, *edges], [*edges, valid], strict=True):
            if begin:
                state = tree.take(fresh, one)
            document = slice(begin, end)
            got_BTD, state = mixer(x_BTD[here, document], state, part(inject, here, document))
            assert_close(operation, y_BTD[here, document], got_BTD)
        assert_same_state(operation, tree.take(last, one), state)


def test_rows_of_different_lengths_go_on(mixer: Mixer, x_BTD: Tensor, operation: str) -> None:
    valid_B = torch.tensor([1, 2, 3])
    _, state = mixer(x_BTD[:, :3], mixer.init_state(ROWS, TOKENS), None, valid_B)
    rest_BTD = torch.stack([x_BTD[row, start : start + 1] for row, start in enumerate([1, 2, 3])])
    got_BTD, _ = mixer(rest_BTD, state)
    whole_BTD, _ = mixer(x_BTD)
    for row, start in enumerate(valid_B.tolist()):
        assert_close(operation, got_BTD[row], whole_BTD[row, start : start + 1])
