"""The kernel of a sweep's decisions against its twin, in Triton's interpreter or on a GPU."""

from typing import Any

import pytest
import torch

from equilm.solve.judge import CycleRule, Record, Status, judge

pytest.importorskip("triton", reason="kernels need Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULES = [None, CycleRule(), CycleRule(patience=1, factor=0.5, halvings=0)]


def draw(lead: tuple[int, ...]) -> tuple[torch.Tensor, Record]:
    """Residuals and records in which everything happens."""

    def whole(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, lead, dtype=torch.int32)

    residual = torch.rand(lead)
    residual[torch.rand(lead) < 0.1] = torch.nan
    residual[torch.rand(lead) < 0.1] = torch.inf
    status = torch.where(torch.rand(lead) < 0.8, -1, whole(0, 3)).to(torch.int8)
    mark = torch.where(torch.rand(lead) < 0.2, torch.inf, torch.rand(lead))
    return residual, Record(
        status=status,
        steps=whole(0, 9),
        residual=torch.rand(lead),
        age=whole(0, 9),
        best_residual=torch.rand(lead),
        mark=mark,
        stalled=whole(0, 9),
        relax=0.5 ** whole(0, 4).float(),
    )


@pytest.mark.parametrize("lead", [(3, 1), (2, 150)])
@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("cycle", RULES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_kernel(
    lead: tuple[int, ...], chain: bool, each: bool, cycle: CycleRule | None, inplace: bool
) -> None:
    from equilm.solve.judge_triton import judge as kernel

    residual, record = draw(lead)
    limits: tuple[Any, Any] = (0.3, 5)
    if each:
        limits = torch.rand(lead), torch.randint(1, 9, lead, dtype=torch.int32)
    want = judge(residual, record, limits[0], limits[1], cycle, chain=chain)
    before = through = None
    if chain:
        through = ((record.status != Status.OPEN) | (residual <= limits[0])).cumprod(-1).bool()
        before = torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], dim=-1)
    given: list[Any] = [
        value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for value in (residual, before, through, *limits)
    ]
    new, first, through_first, tolerance, most = given
    there = Record(*(field.to(DEVICE).clone() for field in record))
    fields, *marks = kernel(
        new, there, first, through_first, tolerance, most, cycle, inplace=inplace
    )
    for got, expected in zip([*fields, *marks], [*want.record, *want[1:]], strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert all((got is old) == inplace for got, old in zip(fields, there, strict=True))
    untouched = not inplace and all(map(torch.equal, map(torch.Tensor.cpu, there), record))
    assert untouched != inplace


@pytest.mark.gpu
@pytest.mark.parametrize("chain", [False, True])
def test_a_gpu_decides_as_a_cpu(chain: bool) -> None:
    residual, record = draw((2, 150))
    want = judge(residual, record, 0.3, 5, CycleRule(), chain=chain)
    there = Record(*(field.cuda() for field in record))
    got = judge(residual.cuda(), there, 0.3, 5, CycleRule(), chain=chain)
    for left, right in zip([*got.record, *got[1:]], [*want.record, *want[1:]], strict=True):
        torch.testing.assert_close(left.cpu(), right, rtol=0, atol=0, equal_nan=True)
