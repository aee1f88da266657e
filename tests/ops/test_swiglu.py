import torch

from equilm.ops.swiglu import swiglu_linear
from tests.tolerance import assert_close


def test_is_its_formula() -> None:
    h_BTI, weight_DI = torch.randn(2, 3, 10).double(), torch.randn(4, 5).double()
    gate_BTI, value_BTI = h_BTI[..., :5], h_BTI[..., 5:]
    expected_BTD = (gate_BTI / (1 + torch.exp(-gate_BTI)) * value_BTI) @ weight_DI.T
    assert_close("elementwise", swiglu_linear(h_BTI, weight_DI), expected_BTD)


def test_gradcheck() -> None:
    h_BTI = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    weight_DI = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu_linear, (h_BTI, weight_DI))
