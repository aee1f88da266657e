"""The kernels of a sweep's own passes against their twin, in Triton's interpreter or on a GPU."""

import pytest
import torch

from equilm.solve import move

pytest.importorskip("triton", reason="kernels need Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("lead", [(3,), (2, 7)])
def test_residual(lead: tuple[int, ...]) -> None:
    from equilm.solve.move_triton import residual

    fz, z = torch.randn(*lead, 20), torch.randn(*lead, 20)
    fz[0], z[0] = 0.0, 0.0
    fz[-1, ..., 3] = torch.nan
    expected = move.relative_residual(fz, z)
    got = residual(fz.to(DEVICE), z.to(DEVICE)).cpu()
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert got.isnan().any() and (got == 0).any()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("has_share", [False, True])
def test_move(has_share: bool, inplace: bool) -> None:
    from equilm.solve.move_triton import move as kernel

    z, best, target = (torch.randn(3, 5, 20) for _ in range(3))
    share = torch.rand(3, 5) if has_share else None
    better, moves, gave_up = (torch.rand(3, 5) < 0.5 for _ in range(3))
    target[~moves] = torch.nan
    reached = target if share is None else torch.lerp(z, target, share[..., None])
    step = move.Step(reached, None, ())
    expected = move.moved(z, best, step, better, moves, gave_up, inplace=False)
    values = [
        None if value is None else value.to(DEVICE)
        for value in (z, best, target, share, better, moves, gave_up)
    ]
    got = kernel(*values, inplace=inplace)  # type: ignore[arg-type]
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left.cpu(), right)
    assert (got[0].data_ptr() == values[0].data_ptr()) == inplace  # type: ignore[union-attr]
