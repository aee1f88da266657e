"""What lies in which graph of a step, seen without a GPU; `test_capture.py` has numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from equilm import tree
from equilm.nn.attention import AttentionConfig
from equilm.nn.capture import Capture
from equilm.nn.equilibrium import EquilibriumConfig, observed
from equilm.nn.linear import VariationalDropout
from equilm.nn.local import LocalConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, MixerConfig, ModelConfig
from equilm.solve import Phantom, Solve


class Recorder:
    """Stands for CUDA's graphs: notes which of them are replayed, and where masks are drawn."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.graphs: list[Any] = []
        self.now: Any = None
        self.draws: list[Any] = []
        recorder, draw = self, torch.rand_like

        class Graph:
            def replay(self) -> None:
                recorder.graphs.append(self)

        def rand_like(*args: Any, **kwargs: Any) -> torch.Tensor:
            recorder.draws.append(recorder.now)
            return draw(*args, **kwargs)

        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", self.graph)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        patch.setattr(torch, "rand_like", rand_like)

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        """Record, which here is to run."""
        self.now = graph
        yield
        self.now = None


def model_of(solve: Solve) -> LanguageModel:
    config = ModelConfig(
        vocab_size=11,
        width=8,
        num_layers=2,
        mixer=Mamba2Config(expand=2, head_width=8, state_size=4),
        dropout=0.5,
        equilibrium=EquilibriumConfig(solve=solve, gradient=Phantom(steps=2)),
    )
    model = LanguageModel(config, generator=torch.Generator().manual_seed(0)).train()
    model.capture = Capture(model.core)
    return model


@pytest.mark.parametrize("check_every", [1, 6])
def test_masks_are_drawn_once_a_solve(check_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = Solve(max_steps=5, tolerance=0.0, check_every=check_every, cycle=None)
    model, recorder = model_of(solve), Recorder(monkeypatch)
    tokens_BT = torch.arange(12).view(2, 6) % 11
    for _ in range(3):
        model.loss(tokens_BT, tokens_BT, ignore=-100)
    assert sum(isinstance(part, VariationalDropout) for part in model.modules()) == 2
    eager, recorded = recorder.draws[:2], recorder.draws[2:]
    assert eager == [None, None] and len(recorded) == 2 and None not in recorded
    for drawn in set(recorded):
        # Two replayed solves.
        assert recorder.graphs.count(drawn) == 2


def test_nothing_is_recorded_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorder = model_of(Solve(max_steps=5, check_every=6)), Recorder(monkeypatch)
    tokens_BT = torch.arange(12).view(2, 6) % 11
    for _ in range(2):
        with torch.no_grad():
            model.eval().loss(tokens_BT, tokens_BT, ignore=-100)
    assert not recorder.graphs
    counts = []
    for _ in range(2):
        model.loss(tokens_BT, tokens_BT, ignore=-100).loss_sum.backward()
        counts.append(len(recorder.graphs))
    # The backward pass compiles its kernels before it is recorded.
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize("check_every", [1, 6])
def test_where_documents_open_is_told_to_every_replay(
    check_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(Solve(max_steps=5, check_every=check_every))
    recorder, capture, count = Recorder(monkeypatch), model.capture, 0
    assert capture is not None
    model.reset_at(3)
    for step in range(3):
        tokens_BT = (step + torch.arange(12).view(2, 6)) % 11
        model.loss(tokens_BT, tokens_BT, ignore=-100)
        if step > 0:
            assert len(recorder.graphs) > count
            assert torch.equal(capture._run.function.starts_BT, tokens_BT == 3)
        count = len(recorder.graphs)
    recording = capture._run
    model.reset_at(None)
    for _ in range(2):
        model.loss(tokens_BT, tokens_BT, ignore=-100)
    assert capture._run is not recording and capture._run.function.starts_BT is None


@pytest.mark.parametrize("mixer", [AttentionConfig(heads=2), LocalConfig(heads=2, window=3)])
def test_attention_on_packed_documents_asks_the_host_nothing(
    mixer: MixerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(vocab_size=11, width=8, num_layers=1, mixer=mixer)
    model = LanguageModel(config, generator=torch.Generator().manual_seed(0)).train()
    model.capture, recorder = Capture(model.core), Recorder(monkeypatch)
    tokens_BT = torch.arange(12).view(2, 6) % 11
    model.reset_at(3)
    model.loss(tokens_BT, tokens_BT, ignore=-100)
    for name in ("item", "tolist", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, None)
    # Nor may anything be made on the host and copied.
    for name in ("as_tensor", "tensor"):
        monkeypatch.setattr(torch, name, None)
    # What `loss` checks lies outside of what is recorded.
    core_of = (model.embed(tokens_BT), None, tokens_BT == 3)
    assert model.capture is not None
    model.capture(*core_of)
    # Full attention has never been recorded so on a GPU, and runs eagerly.
    assert bool(recorder.graphs) == isinstance(mixer, LocalConfig)


@pytest.mark.parametrize("solve", [Solve(max_steps=5), Solve(max_steps=5, check_every=6, window=3)])
def test_every_solve_is_told_once(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(solve)
    Recorder(monkeypatch)
    state, tokens_BT = model.init_state(2, 1), torch.arange(12).view(2, 6) % 11
    for _ in range(4):
        with observed(model) as solutions:
            _, state = model.loss_from(tokens_BT, tokens_BT, state, ignore=-100)
        assert len(solutions) == (2 if solve.window else 1)
    assert not any(leaf.requires_grad for leaf in tree.leaves(state))
