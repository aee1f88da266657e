"""Linear attention with decays against its definition, with all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from equilm.ops.linear_attention import (
    CHUNK,
    linear_attention,
    linear_attention_by_scan,
    linear_attention_chunked,
    linear_attention_sequential,
    masked,
)
from tests.tolerance import assert_close

LENGTHS = [1, 2, 63, CHUNK, CHUNK + 1, 100, 257]
Function = Callable[..., tuple[Tensor, Tensor]]


def make(tokens: int, decays: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, log decays from none to strong, and a state: H = 3, N = 5, P = 4."""
    return [
        torch.randn(2, tokens, 3, 5, dtype=dtype),
        torch.randn(2, tokens, 3, 5, dtype=dtype),
        torch.randn(2, tokens, 3, 4, dtype=dtype),
        -100 * torch.rand(2, tokens, 3, decays, dtype=dtype).pow(6),
        torch.randn(2, 3, 5, 4, dtype=dtype),
    ]


def outputs_and_gradients(run: Function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = run(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator).to(out) for out in outs]
    loss = sum((out * weight).sum() for out, weight in zip(outs, weights, strict=True))
    assert isinstance(loss, Tensor)
    return [*outs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decays", [1, 5], ids=["head", "channel"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunks_are_the_definition(tokens: int, decays: int, dtype: torch.dtype) -> None:
    inputs = make(tokens, decays, dtype)
    expected = outputs_and_gradients(linear_attention_sequential, inputs)
    got = outputs_and_gradients(linear_attention_chunked, inputs)
    for one, other in zip(got, expected, strict=True):
        assert_close("scan", one, other)


def test_the_definition_is_the_formula() -> None:
    q_BTHN, k_BTHN, v_BTHP, log_decay_BTHN, state_BHNP = inputs = make(3, 5)
    y = []
    for t in range(3):
        state_BHNP = log_decay_BTHN[:, t].exp()[..., None] * state_BHNP
        state_BHNP = state_BHNP + torch.einsum("bhn,bhp->bhnp", k_BTHN[:, t], v_BTHP[:, t])
        y.append(torch.einsum("bhnp,bhn->bhp", state_BHNP, q_BTHN[:, t]))
    for run in (linear_attention, linear_attention_sequential, linear_attention_chunked):
        got_BTHP, last_BHNP = run(*inputs)
        assert_close("scan", got_BTHP, torch.stack(y, dim=1))
        assert_close("scan", last_BHNP, state_BHNP)


@pytest.mark.parametrize("tokens", [1, 100])
def test_no_state_is_a_state_of_zeros_and_one_decay_serves_all(tokens: int) -> None:
    q_BTHN, k_BTHN, v_BTHP, log_decay_BTHX, state_BHNP = make(tokens, 1)
    log_decay_111X = log_decay_BTHX[:1, :1, :1]
    got = linear_attention(q_BTHN, k_BTHN, v_BTHP, log_decay_111X)
    same_BTHX, zeros_BHNP = log_decay_111X.expand_as(log_decay_BTHX), torch.zeros_like(state_BHNP)
    want = linear_attention(q_BTHN, k_BTHN, v_BTHP, same_BTHX, zeros_BHNP)
    by_scan = linear_attention_by_scan(q_BTHN, k_BTHN, v_BTHP, log_decay_111X, zeros_BHNP)
    for one, other, third in zip(got, want, by_scan, strict=True):
        assert_close("scan", one, other)
        assert_close("scan", third, other)


@pytest.mark.parametrize("tokens", [3, 130])
def test_a_decay_of_nothing_parts_what_was_before(tokens: int) -> None:
    """At −∞ outputs and gradients are finite, and those of a state of zeros."""
    inputs, start = make(tokens, 5), tokens // 2
    starts_BT = (torch.arange(tokens) == start).expand(2, -1)
    valid_B = torch.tensor([tokens, start])
    inputs[1], inputs[3] = masked(inputs[1], inputs[3], valid_B, starts_BT)
    assert (inputs[3][0, start] == -torch.inf).all()
    expected = outputs_and_gradients(linear_attention_sequential, inputs)
    got = outputs_and_gradients(linear_attention_chunked, inputs)
    for one, other in zip(got, expected, strict=True):
        assert_close("scan", one, other)
    alone_BTHP, last_BHNP = linear_attention(*(tensor[:1, start:] for tensor in inputs[:4]))
    assert_close("scan", got[0][:1, start:], alone_BTHP)
    assert_close("scan", got[1][:1], last_BHNP)
    # What is padding leaves the state of the second row as it was.
    before = [*(tensor[1:, :start] for tensor in inputs[:4]), inputs[4][1:]]
    assert_close("scan", got[1][1:], linear_attention(*before)[1])


def test_half_precision_comes_back_in_float32() -> None:
    inputs = make(100, 5, torch.float32)
    halves = [tensor.bfloat16() for tensor in inputs[:3]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_attention(*halves, *inputs[3:])
    want = linear_attention(*(half.float() for half in halves), *inputs[3:])
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("decay", [0.0, -0.03])
def test_the_kernels_of_the_scan_take_one_decay_for_all_heads(
    decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    from equilm.ops.scan_triton import ssd_triton

    monkeypatch.setattr("equilm.ops.linear_attention.ssd", ssd_triton)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log_decay_111X = torch.full((1, 1, 1, 1), decay, device=device)
    inputs = [tensor.to(device) for tensor in make(70, 1, torch.float32)]
    del inputs[3]

    def run(function: Function) -> list[Tensor]:
        return outputs_and_gradients(lambda *a: function(*a[:3], log_decay_111X, a[3]), inputs)

    expected = run(linear_attention_sequential)
    for one, other in zip(run(linear_attention_by_scan), expected, strict=True):
        assert_close("scan", one, other)
