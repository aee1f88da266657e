import pytest
import torch
from torch import Tensor

from equilm.ops.norm import add_rms_norm, gated_rms_norm
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    return add_rms_norm(x_BTD, None, weight_D, eps=eps)[1]


def formula(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x_BTD = x_BTD.double()
    return x_BTD / (x_BTD.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D.double()


def silu(x_BTD: Tensor) -> Tensor:
    return x_BTD.double() / (1 + torch.exp(-x_BTD.double()))


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_its_formula(dtype: torch.dtype, eps: float) -> None:
    x_BTD, weight_D = torch.randn(2, 3, 8, dtype=dtype), torch.randn(8, dtype=torch.float64)
    y_BTD = rms_norm(x_BTD, weight_D, eps=eps)
    assert y_BTD.dtype == torch.promote_types(dtype, torch.float32)
    assert_close("norm", y_BTD, formula(x_BTD, weight_D, eps))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_rms_norm_is_its_formula(dtype: torch.dtype, eps: float, groups: int) -> None:
    y_BTD, gate_BTD = torch.randn(2, 3, 8, dtype=dtype), torch.randn(2, 3, 8, dtype=dtype)
    weight_D = torch.randn(8, dtype=torch.float64)
    got_BTD = gated_rms_norm(y_BTD, gate_BTD, weight_D, groups=groups, eps=eps)
    assert got_BTD.dtype == torch.promote_types(dtype, torch.float32)
    gated_BTD = y_BTD.double() * silu(gate_BTD)
    parts = zip(gated_BTD.chunk(groups, dim=-1), weight_D.chunk(groups), strict=True)
    expected_BTD = torch.cat([formula(part, weight, eps) for part, weight in parts], dim=-1)
    assert_close("norm", got_BTD, expected_BTD)


def test_what_is_added_counts_before_the_norm() -> None:
    r_BTD, y_BTD, gate_BTD = torch.randn(3, 2, 3, 8).unbind()
    weight_D = torch.randn(8)
    total_BTD, normed_BTD = add_rms_norm(r_BTD, y_BTD, weight_D, dtype=torch.bfloat16)
    assert torch.equal(total_BTD, r_BTD + y_BTD)
    assert torch.equal(normed_BTD, rms_norm(r_BTD + y_BTD, weight_D).bfloat16())
    got_BTD = gated_rms_norm(r_BTD, gate_BTD, weight_D, add_BTD=y_BTD, dtype=torch.bfloat16)
    assert torch.equal(got_BTD, gated_rms_norm(r_BTD, gate_BTD + y_BTD, weight_D).bfloat16())


def test_large_numbers_in_half_precision_do_not_overflow() -> None:
    x_BTD = torch.full((1, 1, 4), 3e4, dtype=torch.float16)
    assert_close("norm", rms_norm(x_BTD, torch.ones(4)), torch.ones(1, 1, 4))


def test_zero_stays_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(1, 1, 4), torch.ones(4)), torch.zeros(1, 1, 4))


def test_gradcheck() -> None:
    x_BTD, gate_BTD, weight_D = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in [(2, 3, 4), (2, 3, 4), (4,)]
    )
    assert torch.autograd.gradcheck(rms_norm, (x_BTD, weight_D))
    assert torch.autograd.gradcheck(gated_rms_norm, (x_BTD, gate_BTD, weight_D))
