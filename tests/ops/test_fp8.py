"""Products and weights in 8 bits: what they lose, and that their scales are safe."""

import pytest
import torch

from equilm.ops import fp8
from equilm.ops.fp8 import Scaled
from equilm.ops.norm import add_rms_norm, gated_rms_norm


def test_a_norm_never_exceeds_its_scale() -> None:
    weight = torch.randn(48)
    weight[7] = 5.0
    r = torch.zeros(2, 48)
    r[:, 7] = 1e6  # all of a norm in one channel is the worst there is
    _, normed = add_rms_norm(r, None, weight)
    scale = fp8.norm_scale(weight)
    assert normed.abs().max() / scale == pytest.approx(fp8.LARGEST, rel=1e-4)


def test_norms_put_out_what_their_scale_says() -> None:
    weight, scale = torch.rand(48) + 0.5, torch.tensor(0.02)
    r, y, gate = torch.randn(3, 5, 48), torch.randn(3, 5, 48), torch.randn(3, 5, 48)
    for low, full in (
        (add_rms_norm(r, y, weight, scale=scale)[1], add_rms_norm(r, y, weight)[1]),
        (
            gated_rms_norm(y, gate, weight, groups=2, scale=scale),
            gated_rms_norm(y, gate, weight, groups=2),
        ),
    ):
        assert low.dtype == torch.float8_e4m3fn
        torch.testing.assert_close(low.float() * scale, full, rtol=2**-4, atol=2**-9 * 0.02)


def test_linear() -> None:
    x, weight = torch.randn(2, 5, 32), torch.randn(20, 32)
    low = Scaled(fp8.to_e4m3(x, torch.tensor(0.01)), torch.tensor(0.01))
    y = fp8.linear(low, fp8.quantise(weight), 20, torch.float32)
    expected = x @ weight.T
    assert y.shape == (2, 5, 20)
    assert 1e-3 < (y - expected).norm() / expected.norm() < 5e-2


def test_a_weight_of_zeros_and_an_odd_width() -> None:
    zeros = fp8.quantise(torch.zeros(16, 16))
    assert zeros.scale > 0 and zeros.data.float().abs().max() == 0
    with pytest.raises(ValueError, match="multiples of 16, got 20"):
        fp8.quantise(torch.randn(16, 20))


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(64, 32, 48), (2048, 768, 3352)])
def test_linear_on_a_gpu(rows: int, inputs: int, outputs: int) -> None:
    x, weight = torch.randn(1, rows, inputs), torch.randn(outputs, inputs)
    scale = torch.tensor(0.01)
    low, heavy = Scaled(fp8.to_e4m3(x, scale), scale), fp8.quantise(weight)
    expected = fp8.linear(low, heavy, outputs, torch.float32)
    got = fp8.linear(
        Scaled(low.data.cuda(), scale.cuda()),
        Scaled(heavy.data.cuda(), heavy.scale.cuda()),
        outputs,
        torch.bfloat16,
    )
    assert (got.float().cpu() - expected).norm() / expected.norm() < 5e-3


def test_rounding_by_rows() -> None:
    weight_ED = torch.randn(7, 33) * torch.logspace(-12, 12, 7)[:, None]
    weight_ED[3] = 0
    narrow = fp8.by_rows(weight_ED)
    back_ED = fp8.widened(narrow, torch.float32)
    bound_ED = 2**-4 * weight_ED.abs() + 1e-3 * narrow.scale[:, None]
    assert ((back_ED - weight_ED).abs() <= bound_ED).all()
    # As near to the largest as a power of two comes, and the same in bf16.
    assert (narrow.data.float().abs().amax(1)[[0, 1, 2, 4, 5, 6]] >= 224).all()
    assert torch.equal(torch.frexp(narrow.scale)[0], torch.full((7,), 0.5))
    assert torch.equal(fp8.widened(narrow, torch.bfloat16).float(), back_ED)
    assert torch.equal(fp8.widened(fp8.by_rows(back_ED), torch.float32), back_ED)
