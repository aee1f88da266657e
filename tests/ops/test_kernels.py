"""Every kernel against its twin: outputs, all gradients, final states.

In Triton's interpreter on a CPU; on a GPU at the lengths and types that matter there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.ops.conv import conv_silu
from equilm.ops.norm import add_rms_norm, gated_rms_norm
from equilm.ops.scan import ssd_chunked

pytest.importorskip("triton", reason="kernels need Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative error of a tensor against float64. A vector's gradient is a sum over all tokens, of many
# signs: the roundings stay and most of the sum goes (a's: 2e-3 to 1.3e-2 in float16).
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
VECTOR = 10.0
TYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fresh memory be NaN, so that whatever a kernel leaves unwritten is seen."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poison(*args: Any, make: Callable[..., Tensor] = make, **kwargs: Any) -> Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

        monkeypatch.setattr(torch, name, poison)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_same(
    kernel: Callable[..., Any],
    twin: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype,
    half: Sequence[int],
) -> None:
    """Compare outputs and gradients; inputs at the places `half` come in `dtype`, else float32."""
    results = []
    for function, is_kernel in ((kernel, True), (twin, False)):
        args = []
        for place, value in enumerate(inputs):
            if value is not None:
                # The twin is given what the kernel is given, after its rounding.
                value = value.to(DEVICE, dtype if place in half else torch.float32)
                value = value if is_kernel else value.double()
                value.requires_grad_()
            args.append(value)
        outputs = function(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (out.double() * torch.randn(out.shape, generator=generator).to(DEVICE)).sum()
            for out in outputs
        )
        gradients = torch.autograd.grad(loss, [arg for arg in args if arg is not None])
        results.append([*outputs, *gradients])
    for got, expected in zip(*results, strict=True):
        error = (got.double() - expected).norm() / expected.norm().clamp(min=1e-30)
        limit = TOLERANCE[dtype] * (VECTOR if expected.ndim == 1 else 1.0)
        assert error < limit, f"relative error {error:.1e} of {tuple(expected.shape)}"


def scan_inputs(tokens: int, heads: int, width: int, groups: int, state: int) -> list[Tensor]:
    return [
        draw(2, tokens, heads, width),
        draw(2, tokens, heads) - 1,
        0.5 * draw(heads),
        draw(2, tokens, groups, state),
        draw(2, tokens, groups, state),
        draw(heads),
        draw(2, heads, width, state),
    ]


def scan(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, dt: Tensor, a: Tensor, *rest: Tensor | None) -> Any:
        return function(x, torch.nn.functional.softplus(dt), -a.exp(), *rest)

    return run


def check_scan(inputs: Sequence[Tensor | None], dtype: torch.dtype) -> None:
    from equilm.ops.scan_triton import ssd_triton

    assert_same(scan(ssd_triton), scan(ssd_chunked), inputs, dtype, half=(0, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 33, 70])
def test_scan(tokens: int, dtype: torch.dtype) -> None:
    check_scan(scan_inputs(tokens, heads=2, width=16, groups=1, state=16), dtype)


@pytest.mark.parametrize(
    ("heads", "width", "groups", "state"),
    [(4, 16, 2, 16), (1, 24, 1, 20), (1, 96, 1, 16), (1, 16, 1, 80)],
)
def test_scan_of_odd_sizes(heads: int, width: int, groups: int, state: int) -> None:
    check_scan(scan_inputs(35, heads, width, groups, state), torch.float32)


def test_scan_from_no_state() -> None:
    check_scan([*scan_inputs(35, 1, 16, 1, 16)[:6], None], torch.float32)


def test_scan_of_slices() -> None:
    """What the mixer passes are parts of one tensor."""
    x, dt, a, b, c, skip, state = scan_inputs(35, heads=2, width=16, groups=1, state=16)
    whole = torch.cat([x.flatten(2), b.flatten(2), c.flatten(2)], dim=-1)

    def split(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(whole: Tensor, dt: Tensor, a: Tensor, skip: Tensor, state: Tensor) -> Any:
            x, b, c = whole.split([32, 16, 16], dim=-1)
            x, b, c = x.unflatten(-1, (2, 16)), b[:, :, None], c[:, :, None]
            return scan(function)(x, dt, a, b, c, skip, state)

        return run

    from equilm.ops.scan_triton import ssd_triton

    inputs = [whole, dt, a, skip, state]
    assert_same(split(ssd_triton), split(ssd_chunked), inputs, torch.float32, half=(0,))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 63, 100, 257, 2048])
def test_scan_at_size(tokens: int, dtype: torch.dtype) -> None:
    check_scan(scan_inputs(tokens, heads=4, width=64, groups=1, state=128), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "state"), [(16, 16), (128, 64), (64, 256)])
def test_scan_of_every_width(width: int, state: int, dtype: torch.dtype) -> None:
    check_scan(scan_inputs(100, heads=2, width=width, groups=1, state=state), dtype)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("tokens", "channels", "taps"), [(1, 8, 4), (11, 8, 4), (9, 130, 3)])
def test_convolution(tokens: int, channels: int, taps: int, given: bool) -> None:
    check_convolution(tokens, channels, taps, given, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 8), (37, 130), (2048, 1792)])
def test_convolution_at_size(tokens: int, channels: int, given: bool, dtype: torch.dtype) -> None:
    check_convolution(tokens, channels, 4, given, dtype)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("tokens", "taps"), [(2, 4), (9, 2)])
def test_convolution_of_rows_of_different_lengths(tokens: int, taps: int, given: bool) -> None:
    check_convolution(tokens, 8, taps, given, torch.float32, torch.tensor([0, tokens - 1]))


def check_convolution(
    tokens: int,
    channels: int,
    taps: int,
    given: bool,
    dtype: torch.dtype,
    valid: Tensor | None = None,
) -> None:
    """Compare, with or without something to add and a window."""
    from equilm.ops.conv_triton import ConvSilu

    valid = None if valid is None else valid.to(DEVICE)
    inputs = [
        draw(2, tokens, channels),
        draw(2, tokens, channels) if given else None,
        draw(channels, taps),
        draw(channels),
        draw(2, taps - 1, channels) if given else None,
    ]

    def kernel(*args: Tensor | None) -> Any:
        return ConvSilu.apply(*args, valid, None)

    def twin(x: Tensor, add: Tensor, weight: Tensor, bias: Tensor, window: Tensor) -> Any:
        return conv_silu(x, weight, bias, window, add_BTC=add, valid_B=valid)

    assert_same(kernel, twin, inputs, dtype, half=(0, 1))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("width", [24, 100])
def test_norm_of_a_sum(width: int, add: bool, dtype: torch.dtype) -> None:
    from equilm.ops.norm_triton import AddNorm

    def kernel(r: Tensor, y: Tensor, weight: Tensor) -> Any:
        return AddNorm.apply(r, y, weight, 1e-5, dtype, None)

    inputs = [draw(2, 5, width), draw(2, 5, width) if add else None, draw(width)]
    assert_same(kernel, add_rms_norm, inputs, dtype, half=(1,))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("width", "groups"), [(24, 1), (100, 2)])
def test_gated_norm(width: int, groups: int, add: bool, dtype: torch.dtype) -> None:
    from equilm.ops.norm_triton import GatedNorm

    def kernel(y: Tensor, gate: Tensor, add: Tensor, weight: Tensor) -> Tensor:
        return GatedNorm.apply(y, gate, add, weight, groups, 1e-5, dtype, None)

    def twin(y: Tensor, gate: Tensor, add: Tensor, weight: Tensor) -> Tensor:
        return gated_rms_norm(y, gate, weight, add_BTD=add, groups=groups)

    inputs = [draw(2, 5, width), draw(2, 5, width), draw(2, 5, width) if add else None, draw(width)]
    assert_same(kernel, twin, inputs, dtype, half=(0, 1, 2))


def test_norms_of_more_rows_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that walk over four rows, the last one over two."""
    from equilm.ops import norm_backward_triton
    from equilm.ops.norm_triton import AddNorm, GatedNorm

    monkeypatch.setattr(norm_backward_triton, "_programs", lambda rows: (4, -(-rows // 4)))
    of_a_sum = [draw(2, 5, 24), draw(2, 5, 24), draw(24)]
    assert_same(
        lambda r, y, weight: AddNorm.apply(r, y, weight, 1e-5, torch.float32, None),
        add_rms_norm,
        of_a_sum,
        torch.float32,
        half=(),
    )
    gated = [draw(2, 5, 24), draw(2, 5, 24), draw(24)]
    assert_same(
        lambda y, gate, weight: GatedNorm.apply(
            y, gate, None, weight, 2, 1e-5, torch.float32, None
        ),
        lambda y, gate, weight: gated_rms_norm(y, gate, weight, groups=2),
        gated,
        torch.float32,
        half=(),
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_group_norm(groups: int) -> None:
    from equilm.ops.norm_triton import group_norm

    x, weight = torch.randn(2, 5, 24, device=DEVICE), torch.randn(24, device=DEVICE)
    got = group_norm(x, weight, groups=groups, eps=1e-5, dtype=torch.float32, scale=None)
    parts = x.unflatten(-1, (groups, -1))
    expected = torch.nn.functional.rms_norm(parts, parts.shape[-1:], eps=1e-5).flatten(2) * weight
    torch.testing.assert_close(got, expected)
