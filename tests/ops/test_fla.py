"""The kernels of flash-linear-attention against our twins; on a CPU what they are given."""

from collections.abc import Callable
from functools import partial
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from equilm.ops import fla
from equilm.ops.delta import delta_rule, delta_rule_sequential
from equilm.ops.linear_attention import linear_attention, linear_attention_sequential
from tests.ops.test_linear_attention import outputs_and_gradients
from tests.tolerance import assert_close

Function = Callable[..., tuple[Tensor, Tensor]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ["linear_attention", "delta", "product"]


def make(kind: str, tokens: int, dtype: torch.dtype, size: int = 32) -> list[Tensor]:
    """What one of the kernels is given, exact in `dtype`, with two starts in a row; H = 2."""
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(DEVICE, dtype).float()

    def share(*shape: int) -> Tensor:
        return torch.rand(2, tokens, *shape, generator=generator).to(DEVICE)

    def fading(*shape: int) -> Tensor:
        log_decay_BTX = -20 * share(*shape).pow(4)
        log_decay_BTX[:, tokens // 2 :][:, :2] = -torch.inf
        return log_decay_BTX

    q_BTHN, state_BHNP = draw(tokens, 2, size), draw(2, size, size + 1)
    if kind == "linear_attention":
        k_BTHN, v_BTHP = draw(tokens, 2, size) / size**0.5, draw(tokens, 2, size + 1)
        return [q_BTHN, k_BTHN.to(dtype).float(), v_BTHP, fading(2, size), state_BHNP]
    steps = 1 if kind == "delta" else 2
    k_BTJHN = normalize(draw(tokens, steps, 2, size), dim=-1).to(dtype).float()
    beta_BTJH = 2 * share(steps, 2)
    v_BTJHP = draw(tokens, steps, 2, size + 1)
    return [q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH, fading(2), state_BHNP]


def functions(kind: str, dtype: torch.dtype) -> tuple[Function, Function]:
    """The kernels' function and its twin, of the tensors that `make` gives."""
    if kind == "linear_attention":
        return partial(fla.linear_attention_fla, dtype=dtype), linear_attention_sequential
    return partial(fla.delta_rule_fla, dtype=dtype), delta_rule_sequential


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library's kernels compute, by our definitions."""

    def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **how: Tensor) -> tuple[Tensor, Tensor]:
        assert q.shape == k.shape == g.shape and g.isfinite().all() and how["scale"] == 1
        return linear_attention_sequential(q, k, v, g, how["initial_state"])

    def kda(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **how: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert q.shape == k.shape == g.shape and g.isfinite().all() and how["scale"] == 1
        g, state = g[..., 0], how["initial_state"]
        return delta_rule_sequential(q, k[:, :, None], v[:, :, None], beta[:, :, None], g, state)

    kernels = SimpleNamespace(gla=gla, kda=kda)
    monkeypatch.setattr("equilm.ops.fla._kernels", lambda: kernels)


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_given_what_they_ask_for(kind: str) -> None:
    inputs = make(kind, 20, torch.float32, size=4)
    ours, twin = functions(kind, torch.float32)
    expected = outputs_and_gradients(twin, inputs)
    for one, other in zip(outputs_and_gradients(ours, inputs), expected, strict=True):
        assert_close("scan", one, other)


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("kind", ["linear_attention", "product"])
def test_they_are_chosen_where_a_half_type_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilm.ops.fla.half_type", lambda v_BTX: torch.bfloat16)
    inputs = make(kind, 20, torch.float32, size=4)
    run: Function = delta_rule if kind == "product" else linear_attention
    got, expected = run(*inputs), functions(kind, torch.bfloat16)[0](*inputs)
    exact = functions(kind, torch.float32)[0](*inputs)
    for one, other, third in zip(got, expected, exact, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, third)
        assert one.dtype == torch.float32


def test_the_twin_computes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilm.ops.fla.installed", lambda: True)
    v_BTX = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert fla.half_type(v_BTX) is None


def test_a_kernel_keeps_one_configuration() -> None:
    def config(num_warps: int, **kwargs: int) -> SimpleNamespace:
        return SimpleNamespace(kwargs=kwargs, num_warps=num_warps, num_stages=2)

    found = [config(4, BK=128), config(8, BK=64), config(4, BK=64), config(4, BK=32)]
    assert min(found, key=partial(fla._far, 64)) is found[2]
    assert min(found, key=partial(fla._far, 16)) is found[3]


@pytest.mark.parametrize(
    ("version", "serves"),
    [("0.5.9", False), ("0.6.0", True), ("0.6.0.dev3", True), ("0.10", True), (None, False)],
)
def test_an_older_library_is_left_alone(
    version: str | None, serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(fla, "find_spec", lambda name: name)
    monkeypatch.setattr(metadata, "version", told)
    assert fla.installed.__wrapped__() == serves


needs = pytest.mark.skipif(not fla.installed(), reason="needs fla-core, and Triton")


@needs
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [2, 63, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_their_twins(kind: str, tokens: int, dtype: torch.dtype) -> None:
    inputs = make(kind, tokens, dtype)
    ours, twin = functions(kind, dtype)
    expected = outputs_and_gradients(twin, inputs)
    for one, other in zip(outputs_and_gradients(ours, inputs), expected, strict=True):
        assert_close("half", one, other, dtype=dtype)


@needs
@pytest.mark.gpu
def test_the_choice_on_a_gpu() -> None:
    whole_BTX = torch.ones(2, 3, 4, device="cuda")
    half_BTX = whole_BTX.bfloat16()
    assert fla.half_type(half_BTX) == torch.bfloat16
    assert fla.half_type(half_BTX[:, :1]) is None
    assert fla.half_type(whole_BTX) is None
    with torch.autocast("cuda", torch.float16):
        assert fla.half_type(whole_BTX) == torch.float16
        assert fla.half_type(whole_BTX.double()) is None


@needs
@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_holds_them(kind: str) -> None:
    inputs, ours = make(kind, 70, torch.bfloat16), functions(kind, torch.bfloat16)[0]

    def run() -> list[Tensor]:
        # Leaves that autograd has met outside would tie the graph to the stream there.
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        y_BTHP, last_BHNP = ours(*leaves)
        gradients = torch.autograd.grad(y_BTHP.sum() + last_BHNP.sum(), leaves)
        return [y_BTHP.detach(), last_BHNP.detach(), *gradients]

    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
