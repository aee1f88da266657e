"""One token of the selective scan in one pass: the scan itself, its gradients, and the kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.selective import selective_scan_chunked
from equilm.ops.selective_token import selective_token, selective_token_plain


def inputs_of(rows: int, channels: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    """Draw x, step, log(−a), b, c, skip, gate and the state."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    given = [draw(rows, channels), 4 * draw(rows, channels), 0.5 * draw(channels, size)]
    given += [draw(rows, size), draw(rows, size), draw(channels)]
    given += [draw(rows, 2 * channels)[:, channels:], draw(rows, channels, size)]
    kept = (2, 5, 7)
    return [value.to(wide if place in kept else dtype) for place, value in enumerate(given)]


def by_scan(
    x: Tensor,
    step: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    gate: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor]:
    one = [part[:, None] for part in (x, F.softplus(step), b, c)]
    y, h = selective_scan_chunked(one[0], one[1], -a_log.exp(), one[2], one[3], skip, h)
    return y[:, 0] * F.silu(gate), h


def test_one_token_is_the_scan_with_all_gradients() -> None:
    given = [value.requires_grad_() for value in inputs_of(3, 7, 5, torch.float64)]
    results = []
    for function in (selective_token, by_scan):
        y, h = function(*given)
        loss = (y * y.detach().cos()).sum() + (h * h.detach().sin()).sum()
        results.append([y, h, *torch.autograd.grad(loss, given)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def check_kernel(rows: int, channels: int, size: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    from equilm.ops.selective_token_triton import selective_token_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [value.to(device) for value in inputs_of(rows, channels, size, dtype)]
    given[1][0, :3] = torch.tensor([-30.0, 25.0, 100.0])
    twins = selective_token_plain(*(value.double() for value in given))
    for got, expected in zip(selective_token_kernel(*given), twins, strict=True):
        limit = (
            1e-2 if got.dtype == torch.bfloat16 else 2e-3 if got.dtype == torch.float16 else 1e-5
        )
        error = (got.double() - expected).norm() / expected.norm()
        assert error < limit, f"relative error {error:.1e} of {tuple(expected.shape)}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "channels", "size"), [(1, 3, 1), (2, 33, 16), (3, 40, 5)])
def test_the_kernel_is_the_twin(rows: int, channels: int, size: int, dtype: torch.dtype) -> None:
    check_kernel(rows, channels, size, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 16, 64])
def test_the_kernel_at_size(size: int, dtype: torch.dtype) -> None:
    check_kernel(65, 1536, size, dtype)
