import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.conv import conv_silu
from tests.tolerance import assert_close

ROWS, TOKENS, CHANNELS = 3, 11, 5


def make(width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(ROWS, TOKENS, CHANNELS, dtype=dtype),
        torch.randn(CHANNELS, width, dtype=dtype),
        torch.randn(CHANNELS, dtype=dtype),
        torch.randn(ROWS, width - 1, CHANNELS, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_is_conv1d_then_silu(width: int, dtype: torch.dtype) -> None:
    x_BTC, weight_CW, bias_C, window_BWC = make(width, dtype)
    before_BSC = torch.cat([window_BWC, x_BTC], dim=1)
    convolved_BCT = F.conv1d(before_BSC.mT, weight_CW[:, None], bias_C, groups=CHANNELS)
    y_BTC, next_BWC = conv_silu(x_BTC, weight_CW, bias_C, window_BWC)
    assert_close("conv", y_BTC, F.silu(convolved_BCT).mT)
    assert torch.equal(next_BWC, before_BSC[:, TOKENS:])


def test_no_window_is_a_window_of_zeros() -> None:
    x_BTC, weight_CW, bias_C, window_BWC = make(4)
    got = conv_silu(x_BTC, weight_CW, bias_C)
    expected = conv_silu(x_BTC, weight_CW, bias_C, torch.zeros_like(window_BWC))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("split", range(1, TOKENS))
def test_the_window_carries_a_split(split: int) -> None:
    x_BTC, weight_CW, bias_C, window_BWC = make(4)
    whole_BTC, last_BWC = conv_silu(x_BTC, weight_CW, bias_C, window_BWC)
    first_BTC, window_BWC = conv_silu(x_BTC[:, :split], weight_CW, bias_C, window_BWC)
    second_BTC, window_BWC = conv_silu(x_BTC[:, split:], weight_CW, bias_C, window_BWC)
    assert_close("conv", torch.cat([first_BTC, second_BTC], dim=1), whole_BTC)
    assert torch.equal(window_BWC, last_BWC)


@pytest.mark.parametrize("given", [True, False])
def test_only_valid_tokens_enter_the_window(given: bool) -> None:
    x_BTC, weight_CW, bias_C, before_BWC = make(4)
    window_BWC = before_BWC if given else None
    valid_B = torch.tensor([0, 2, TOKENS])
    _, next_BWC = conv_silu(x_BTC, weight_CW, bias_C, window_BWC, valid_B=valid_B)
    for row, valid in enumerate(valid_B.tolist()):
        expected_BWC = torch.zeros_like(before_BWC) if window_BWC is None else window_BWC
        if valid:
            _, expected_BWC = conv_silu(x_BTC[:, :valid], weight_CW, bias_C, window_BWC)
        assert torch.equal(next_BWC[row], expected_BWC[row])


def test_half_precision_carries_a_wide_window() -> None:
    inputs = make(4, torch.float32)
    y_BTC, _ = conv_silu(*inputs)
    narrow = [tensor.bfloat16() for tensor in inputs]
    got_BTC, next_BWC = conv_silu(*narrow)
    assert got_BTC.dtype == torch.bfloat16
    assert next_BWC.dtype == torch.float32
    assert_close("conv", got_BTC, y_BTC)


@pytest.mark.parametrize("valid", [None, [0, 3, TOKENS]])
def test_gradcheck(valid: list[int] | None) -> None:
    inputs = [tensor.requires_grad_() for tensor in make(4)]
    valid_B = None if valid is None else torch.tensor(valid)
    assert torch.autograd.gradcheck(lambda *args: conv_silu(*args, valid_B=valid_B), inputs)
