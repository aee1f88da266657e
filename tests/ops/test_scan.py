from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from equilm.ops.scan import CHUNK, ssd, ssd_chunked, ssd_sequential
from tests.tolerance import assert_close

LENGTHS = [1, 63, 64, 65, 100, 257]
Scan = Callable[..., tuple[Tensor, Tensor]]
SCANS: dict[str, Scan] = {"sequential": ssd_sequential, "chunked": ssd_chunked}


class Inputs(NamedTuple):
    x_BTHP: Tensor
    dt_BTH: Tensor
    a_H: Tensor
    b_BTGN: Tensor
    c_BTGN: Tensor
    skip_H: Tensor
    state_BHPN: Tensor


def make(tokens: int, *, groups: int = 1, dtype: torch.dtype = torch.float64) -> Inputs:
    rows, heads, width, size = 2, 4, 3, 5
    return Inputs(
        torch.randn(rows, tokens, heads, width, dtype=dtype),
        0.3 * torch.rand(rows, tokens, heads, dtype=dtype),
        -4 * torch.rand(heads, dtype=dtype),
        torch.randn(rows, tokens, groups, size, dtype=dtype),
        torch.randn(rows, tokens, groups, size, dtype=dtype),
        torch.randn(heads, dtype=dtype),
        torch.randn(rows, heads, width, size, dtype=dtype),
    )


def outputs_and_gradients(scan: Scan, inputs: Inputs) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y_BTHP, state_BHPN = scan(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator) for out in (y_BTHP, state_BHPN)]
    loss = (y_BTHP * weights[0]).sum() + (state_BHPN * weights[1]).sum()
    return [y_BTHP, state_BHPN, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunked_is_sequential(tokens: int, groups: int, dtype: torch.dtype) -> None:
    inputs = make(tokens, groups=groups, dtype=dtype)
    expected = outputs_and_gradients(ssd_sequential, inputs)
    for got, want in zip(outputs_and_gradients(ssd_chunked, inputs), expected, strict=True):
        assert_close("scan", got, want)


@pytest.mark.parametrize("tokens", [1, 2, CHUNK + 1])
def test_the_dispatcher_is_sequential(tokens: int) -> None:
    inputs = make(tokens)
    for got, want in zip(ssd(*inputs), ssd_sequential(*inputs), strict=True):
        assert_close("scan", got, want)


def test_one_step_is_the_formula() -> None:
    x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN = make(1, groups=2)
    b_BHN, c_BHN = (tensor[:, 0].repeat_interleave(2, dim=1) for tensor in (b_BTGN, c_BTGN))
    decay_BH = torch.exp(dt_BTH[:, 0] * a_H)
    added_BHPN = torch.einsum("bh,bhp,bhn->bhpn", dt_BTH[:, 0], x_BTHP[:, 0], b_BHN)
    after_BHPN = decay_BH[..., None, None] * state_BHPN + added_BHPN
    y_BHP = torch.einsum("bhpn,bhn->bhp", after_BHPN, c_BHN) + skip_H[:, None] * x_BTHP[:, 0]
    for scan in SCANS.values():
        got_BTHP, got_BHPN = scan(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN)
        assert_close("scan", got_BTHP[:, 0], y_BHP)
        assert_close("scan", got_BHPN, after_BHPN)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("tokens", [1, 64, 100])
def test_no_state_is_a_state_of_zeros(scan: Scan, tokens: int) -> None:
    *inputs, state_BHPN = make(tokens)
    for got, want in zip(
        scan(*inputs, None), scan(*inputs, torch.zeros_like(state_BHPN)), strict=True
    ):
        assert_close("scan", got, want)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("split", [1, 40, 64, 99])
def test_the_state_carries_a_split(scan: Scan, split: int) -> None:
    x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state = make(100)
    whole_BTHP, last_BHPN = scan(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state)
    pieces = []
    for part in (slice(0, split), slice(split, None)):
        piece, state = scan(
            x_BTHP[:, part], dt_BTH[:, part], a_H, b_BTGN[:, part], c_BTGN[:, part], skip_H, state
        )
        pieces.append(piece)
    assert_close("scan", torch.cat(pieces, dim=1), whole_BTHP)
    assert_close("scan", state, last_BHPN)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_a_token_without_a_step_leaves_the_state(scan: Scan) -> None:
    inputs = make(70)
    for keep in (0, 1, 69):
        dt_BTH = inputs.dt_BTH.clone()
        dt_BTH[:, keep:] = 0
        _, state_BHPN = scan(*inputs._replace(dt_BTH=dt_BTH))
        expected_BHPN = inputs.state_BHPN
        if keep:
            shorter = [part[:, :keep] if part.ndim > 2 else part for part in inputs[:-1]]
            _, expected_BHPN = scan(*shorter, inputs.state_BHPN)
        assert_close("scan", state_BHPN, expected_BHPN)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("tokens", [64, 200])
def test_strong_decays_lose_no_digits(scan: Scan, tokens: int) -> None:
    inputs = make(tokens)
    weak_and_strong_BTH = torch.full_like(inputs.dt_BTH, 1e-3)
    weak_and_strong_BTH[:, : tokens - 20 : 3] = 100.0
    inputs = inputs._replace(dt_BTH=weak_and_strong_BTH, a_H=torch.full_like(inputs.a_H, -1.0))
    # Between tokens of weak decay alone; a strong step writes a hundred times more than it reads.
    expected = outputs_and_gradients(ssd_sequential, inputs)
    narrow = Inputs(*(tensor.float() for tensor in inputs))
    for got, want in zip(outputs_and_gradients(scan, narrow), expected, strict=True):
        assert_close("scan", got, want)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_gradcheck(scan: Scan) -> None:
    tensors = [tensor.requires_grad_() for tensor in make(5, groups=2)]
    arguments = {"chunk": 2} if scan is ssd_chunked else {}
    assert torch.autograd.gradcheck(lambda *inputs: scan(*inputs, **arguments), tensors)


@pytest.mark.parametrize("tokens", [1, 70])
def test_state_and_output_stay_wide_under_autocast(tokens: int) -> None:
    inputs = make(tokens, dtype=torch.float32)
    expected = ssd(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ssd(*inputs)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_half_precision_inputs_are_widened(scan: Scan) -> None:
    *inputs, state_BHPN = make(20, dtype=torch.float32)
    narrow = [part.bfloat16() if part.ndim > 2 else part for part in inputs]
    widened = [part.float() for part in narrow]
    for got, want in zip(scan(*narrow, state_BHPN), scan(*widened, state_BHPN), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
