"""What is replayed from recordings gives what is called, on a GPU and in an imitation of one."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equilm import tree
from equilm.decode import slots, windows
from equilm.decode.engine import Engine
from equilm.decode.evaluation import Evaluation
from equilm.decode.request import Request, Sampling
from equilm.nn import graph
from equilm.nn.block import Stack
from equilm.nn.gated import Gated
from equilm.nn.linear import Weight, constants
from equilm.nn.model import LanguageModel
from tests.decode.plain import ids, plain, ragged, run
from tests.nn.build import SMALL, equilibrium_model, language_model
from tests.nn.patterns import PATTERNS, hybrid_model, implicit_hybrid

KINDS = [(kind, implicit) for kind in ("mamba2", "attention") for implicit in (True, False)]
KINDS += [("zamba", True)]


def imitation(function: Callable[[], Any]) -> Callable[[], Any]:
    """What a recording does: run once before, and ever after into the same tensors."""
    result = function()

    def replay() -> Any:
        again = function()
        tree.map_(lambda old, new: old.copy_(new) if old is not new else old, result, again)
        return result

    return replay


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let engines record on a CPU; holds what was recorded."""
    made: list[Any] = []

    def noted(function: Callable[[], Any], *, pool: Any) -> Callable[[], Any]:
        assert pool is not None
        made.append(getattr(function, "func", function))
        return imitation(function)

    monkeypatch.setattr(graph, "recorded", noted)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, len(made)))
    monkeypatch.setattr(Evaluation, "can_be_recorded", True)
    return made


def build(kind: str, implicit: bool) -> Any:
    if kind in PATTERNS:
        return (implicit_hybrid if implicit else hybrid_model)(kind).eval()
    return (equilibrium_model if implicit else language_model)(kind, num_layers=1).eval()


@pytest.mark.parametrize(("kind", "implicit"), KINDS)
@pytest.mark.parametrize(
    "settings",
    [{"slots": 1, "short": 0}, {"slots": 3}, {"slots": 8, "check_every": 3, "short": 0}],
    ids=str,
)
def test_replaying_is_the_plain_loop(
    kind: str, implicit: bool, settings: dict[str, Any], recordings: list[Any]
) -> None:
    requests = ragged(6)
    engine = Engine(build(kind, implicit), capacity=40, window=1, **settings)
    assert run(engine, requests) == [plain(build(kind, implicit), each) for each in requests]
    # Few numbers of rows, so few recordings for hundreds of calls.
    assert 3 <= len(recordings) <= 30
    assert engine.counts.sweeps > 2 * len(recordings) or not implicit


@pytest.mark.parametrize(
    ("kind", "declared"),
    [
        ("mamba2", (True, True)),
        ("mamba2 signed", (False, False)),
        ("attention", (True, False)),
        ("gru", (False, False)),
        ("zamba", (True, False)),
        ("griffin", (False, False)),
    ],
)
def test_a_stack_may_be_recorded_if_all_its_mixers_may(
    kind: str, declared: tuple[bool, bool]
) -> None:
    name, _, eigenvalues = kind.partition(" ")
    mixer = replace(SMALL[name], eigenvalues=eigenvalues) if eigenvalues else SMALL.get(name)
    model = hybrid_model(name) if mixer is None else language_model(name, mixer=mixer)
    core = model.core
    for body in (core, Gated(core, 8)):
        assert (body.recordable, body.spares_states) == declared


@pytest.mark.parametrize("start", ["zero", "previous"])
def test_replaying_is_calling(start: Any, recordings: list[Any]) -> None:
    model = build("mamba2", True)
    odd = [
        Request(prompt=(1, 2), max_tokens=9, sampling=Sampling(top_k=3, seed=1), tolerance=1e-6),
        Request(prompt=(3,), max_tokens=9, logprobs=2, residuals=True, tolerance=1e-6),
        Request(prompt=(4, 5), max_tokens=5, stop_tokens=(1, 2, 3, 4), tolerance=1e-6),
    ]
    engines = [Engine(model, slots=4, start=start) for _ in range(2)]
    engines[1].slots.recorder.records = False
    first, second = (run(engine, [*ragged(4), *odd]) for engine in engines)
    assert first == second
    assert recordings


@pytest.mark.parametrize("check_every", [1, 2])
@pytest.mark.parametrize("start", ["zero", "previous"])
def test_states_of_some_rows(
    check_every: int, start: Any, recordings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, taken = build("mamba2", True), ragged(8), list[Tensor]()
    settings: dict[str, Any] = {"slots": 4, "check_every": check_every, "start": start}
    whole = Engine(model, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "can_leave_rows", False)
        told = run(whole, asked)

    def leaves_others(self: Any, *given: Any) -> Any:
        y_B1D, after = type(self).forward(self, *given[:3])
        taken.append(given[3].clone())
        for leaf in tree.leaves(after):
            leaf[~given[3]] = torch.nan
        return y_B1D, after

    monkeypatch.setattr(Stack, "advance_some", leaves_others)
    some = Engine(model, **settings)
    assert run(some, asked) == told
    share = torch.cat(taken).float().mean()
    # Few tokens settled by surprise, and not all states were written.
    assert some.counts.sweeps <= 1.1 * whole.counts.sweeps and share < 0.7
    # Where all do, they take a sweep more.
    monkeypatch.setattr(slots, "SOON", 0.0)
    late = Engine(model, **settings)
    assert run(late, asked) == told
    assert late.counts.sweeps >= some.counts.sweeps


@pytest.mark.parametrize("kind", ["mamba2", "attention"])
def test_prompts_from_recordings(kind: str, recordings: list[Any]) -> None:
    model = build(kind, True)
    requests = [
        Request(prompt=tuple(t % 11 for t in range(n)), max_tokens=2, tolerance=1e-7, max_steps=100)
        for n in (38, 30, 23)
    ]
    settings: dict[str, Any] = {"capacity": 50, "window": 8, "chunk": 16, "short": 2}
    told = run(Engine(model, slots=2, **settings), requests)
    assert [ids(one) for one in told] == [ids(plain(model, each)) for each in requests]
    # With and without a number of valid tokens; a cache would be copied whole.
    taken = [one for one in recordings if "Windows" in one.__qualname__]
    assert len(taken) == (2 if kind == "mamba2" else 0)


def test_few_windows_are_kept(recordings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "KEPT", 1)
    model = build("mamba2", True)
    requests = [
        Request(prompt=tuple(t % 11 for t in range(n)), max_tokens=2, tolerance=1e-7, max_steps=100)
        for n in (21, 11, 22, 12)
    ]
    engine, told = Engine(model, slots=1, window=8, chunk=16, short=0), []
    for request in requests:
        told += run(engine, [request])
        assert len(engine.evaluation._windows._static) == 1
    assert [ids(one) for one in told] == [ids(plain(model, each)) for each in requests]
    assert len([one for one in recordings if "Windows" in one.__qualname__]) > 2


def assigned(model: LanguageModel) -> None:
    with torch.no_grad():
        model.embedding.copy_(model.embedding.flip(0))
        for part in model.modules():
            if isinstance(part, Weight):
                part.assign(0.9 * part.effective())


def loaded(model: LanguageModel) -> None:
    model.load_state_dict({name: leaf.flip(0) for name, leaf in model.state_dict().items()})


def optimized(model: LanguageModel) -> None:
    for leaf in model.parameters():
        leaf.grad = leaf.detach().flip(-1)
    # It writes without being counted.
    torch.optim.AdamW(model.parameters(), lr=0.3, fused=True).step()


def uncounted(model: LanguageModel) -> None:
    for leaf in model.parameters():
        leaf.data *= 1.5


@pytest.mark.parametrize("write", [assigned, loaded, optimized, uncounted])
def test_weights_that_moved_are_recorded_anew(
    write: Callable[[LanguageModel], None], recordings: list[Any]
) -> None:
    model = build("mamba2", True)
    engine, request = Engine(model), Request(prompt=(1, 2), max_tokens=3)
    before, count = run(engine, [request]), len(recordings)
    # What was made of the weights waits for the next request, outside of the model.
    assert run(engine, [request]) == before and len(recordings) == count
    with torch.no_grad():
        assert not any(part.is_prepared() for part in model.modules() if isinstance(part, Weight))
    write(model)
    after = run(engine, [request])
    assert after == [plain(model, request)] != before
    assert len(recordings) == 2 * count


@torch.no_grad()
def test_a_small_change_in_half_precision_is_seen() -> None:
    model = equilibrium_model("mamba2").to(torch.bfloat16).eval()
    evaluation = Evaluation(model)
    assert evaluation.refresh() and not evaluation.refresh()
    before = model.embedding.norm()
    # Not counted by PyTorch, and too little for a norm in the type of the weights.
    model.embedding.data[0, 0] *= 1.02
    assert model.embedding.norm() == before
    assert evaluation.refresh() and not evaluation.refresh()


@pytest.mark.parametrize("settings", [{"short": 8}, {"short": 0, "window": 2}], ids=str)
def test_weights_live_as_long_as_what_was_recorded_of_them(
    settings: dict[str, Any], recordings: list[Any]
) -> None:
    model, request = equilibrium_model("mamba2", weight_norm=True).eval(), ragged(4)[0]
    first = Engine(model)
    number = first.submit(request)
    first.step()
    with torch.no_grad():
        folded = [weakref.ref(made) for made in constants(model)]
    # Busy meanwhile, it finds them folded; then who folded them goes.
    second = Engine(model, **settings)
    run(second, [request])
    first.cancel(number)
    del first
    recordings.clear()
    gc.collect()
    assert folded and all(leaf() is not None for leaf in folded)
    del second
    recordings.clear()
    gc.collect()
    assert all(leaf() is None for leaf in folded)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "implicit"), KINDS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("check_every", [1, 3])
def test_graphs_are_calling(kind: str, implicit: bool, precision: Any, check_every: int) -> None:
    model = build(kind, implicit).float().cuda()
    requests = [*ragged(6), *ragged(3, seed=1, logprobs=2)]
    settings: dict[str, Any] = {"slots": 4, "capacity": 40, "check_every": check_every}
    engines = [Engine(model, precision=precision, **settings) for _ in range(2)]
    assert engines[0].slots.recorder.records
    engines[1].slots.recorder.records = False
    first, second = (run(engine, requests) for engine in engines)
    assert [ids(one) for one in first] == [ids(one) for one in second]
    assert [one.tokens[0].steps for one in first] == [one.tokens[0].steps for one in second]


@pytest.mark.gpu
def test_graph() -> None:
    x: Tensor = torch.zeros(3, device="cuda")
    record = graph.Recorder(nn.Identity(), records=True)
    for turn in range(3):
        y = record("add", lambda: x.add_(1) * 2, changes=x)
        assert y.tolist() == [2.0 * (turn + 1)] * 3


@pytest.mark.gpu
def test_graphs_share_their_memory() -> None:
    size = 64 * 2**20
    x: Tensor = torch.ones(size // 4, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    record, before = graph.Recorder(nn.Identity(), records=True), torch.cuda.memory_reserved()
    for _ in range(2):
        # Each needs room for one tensor of this size on the way, and returns a number.
        for turn in range(5):
            assert record(turn, lambda: (x + 1).sum()).item() == size // 2
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() - before < 2 * size
        record.forget()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < size
