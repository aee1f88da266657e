"""Kernels on rows of several documents against their twins: outputs, all gradients, final states.

The twins are compared with each document apart in `test_resets.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.nn.mamba2 import Mamba2, Mamba2Config, Mamba2State
from equilm.ops.conv import conv_silu
from equilm.ops.gated_scan import Weights, gated_scan
from equilm.ops.scan import ssd_chunked
from tests.ops.test_gated_scan import NAMES, inputs_of
from tests.ops.test_kernels import DEVICE, assert_same, draw, poisoned, scan, scan_inputs

__all__ = ["poisoned"]  # a fixture that every test here uses

# Where documents open in two rows: at the first token, at a chunk's borders, side by side; nowhere.
OPENINGS = [([31, 32], []), ([1, 2, 33, 34], [0]), (range(36), [35])]


def starts_of(tokens: int, *openings: Any) -> Tensor:
    """Return (B, T) bool, true at the places given for each row, where there is such a token."""
    starts_BT = torch.zeros(len(openings), tokens, dtype=torch.bool)
    for row, places in enumerate(openings):
        starts_BT[row, [place for place in places if place < tokens]] = True
    return starts_BT.to(DEVICE)


def some_starts(tokens: int) -> Tensor:
    """Return starts of two rows with documents of many lengths, one token among them."""
    places = [n * n for n in range(tokens)]
    return starts_of(tokens, places, [place + 40 for place in places])


def check_scan(inputs: list[Tensor | None], starts: Tensor, dtype: torch.dtype) -> None:
    from equilm.ops.scan_triton import ssd_triton

    def parted(function: Callable[..., Any]) -> Callable[..., Any]:
        return scan(lambda *args: function(*args, starts))

    assert_same(parted(ssd_triton), parted(ssd_chunked), inputs, dtype, half=(0, 3, 4))


@pytest.mark.parametrize("openings", OPENINGS)
def test_scan(openings: Any) -> None:
    inputs = scan_inputs(36, heads=1, width=16, groups=1, state=16)
    check_scan([*inputs], starts_of(36, *openings), torch.float32)


def test_scan_in_half_precision_from_no_state() -> None:
    inputs = scan_inputs(66, heads=2, width=16, groups=1, state=16)
    check_scan([*inputs[:6], None], some_starts(66), torch.float16)


def test_scan_of_odd_sizes() -> None:
    check_scan([*scan_inputs(35, 2, 24, 2, 20)], some_starts(35), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [63, 257, 2048])
def test_scan_at_size(tokens: int, dtype: torch.dtype) -> None:
    inputs = scan_inputs(tokens, heads=4, width=64, groups=1, state=128)
    check_scan([*inputs], some_starts(tokens), dtype)


def check_convolution(
    tokens: int,
    starts: Tensor,
    *,
    channels: int = 8,
    taps: int = 4,
    given: bool = True,
    valid: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Compare, with or without something to add and a window."""
    from equilm.ops.conv_triton import ConvSilu

    rows, valid = len(starts), None if valid is None else valid.to(DEVICE)
    inputs = [
        draw(rows, tokens, channels),
        draw(rows, tokens, channels) if given else None,
        draw(channels, taps),
        draw(channels),
        draw(rows, taps - 1, channels) if given else None,
    ]

    def kernel(*args: Tensor | None) -> Any:
        return ConvSilu.apply(*args, valid, starts)

    def twin(x: Tensor, add: Tensor, weight: Tensor, bias: Tensor, window: Tensor) -> Any:
        return conv_silu(x, weight, bias, window, add_BTC=add, valid_B=valid, starts_BT=starts)

    assert_same(kernel, twin, inputs, dtype, half=(0, 1))


@pytest.mark.parametrize(("taps", "given"), [(2, True), (3, True), (4, True), (4, False)])
def test_convolution(taps: int, given: bool) -> None:
    """Starts on both sides of where one program hands over to the next, at token 8."""
    openings = [0, 3, 6, 10], [7, 9] if given else range(11)
    check_convolution(11, starts_of(11, *openings), taps=taps, given=given)


@pytest.mark.parametrize("place", [0, 2])
def test_the_window_after_a_start(place: int) -> None:
    """Rows end before, at and behind a start."""
    starts = starts_of(5, *([place],) * 4)
    check_convolution(5, starts, valid=place + torch.arange(4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "channels"), [(37, 130), (257, 1792), (2048, 1792)])
def test_convolution_at_size(tokens: int, channels: int, dtype: torch.dtype) -> None:
    check_convolution(tokens, some_starts(tokens), channels=channels, dtype=dtype)


def check_gated_scan(
    inputs: dict[str, Tensor | None],
    starts: Tensor,
    dtype: torch.dtype = torch.float32,
    valid: Tensor | None = None,
) -> None:
    """Compare the public operation as a GPU runs it with the composition of the twins."""
    valid = None if valid is None else valid.to(DEVICE)

    def run(proj: Tensor, inject: Tensor | None, *rest: Any) -> Any:
        weights, states = Weights(*rest[:6]), rest[6:]
        return gated_scan(proj, inject, weights, *states, groups=1, valid_B=valid, starts_BT=starts)

    def by_kernels(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("equilm.ops.gated_scan._fits_kernels", lambda *_: True)
            return run(*args)

    assert_same(by_kernels, run, [inputs[name] for name in NAMES], dtype, half=(0, 1, 2))


@pytest.mark.parametrize("given", [False, True])
def test_gated_scan(given: bool) -> None:
    inputs: dict[str, Tensor | None] = {**inputs_of(9, heads=1)}
    if not given:
        inputs = {**inputs, "inject": None, "window": None, "scan": None}
    check_gated_scan(inputs, starts_of(9, [2, 3, 7], [0]))


def test_a_start_in_the_padding() -> None:
    inputs: dict[str, Tensor | None] = {**inputs_of(5, rows=3, heads=1)}
    starts = starts_of(5, [0, 4], [2, 3], [1])
    check_gated_scan(inputs, starts, valid=torch.tensor([0, 3, 5]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [2, 257, 2048])
def test_gated_scan_at_size(tokens: int, dtype: torch.dtype) -> None:
    inputs: dict[str, Tensor | None] = {**inputs_of(tokens, heads=4, width=64, state=128)}
    check_gated_scan(inputs, some_starts(tokens), dtype)


def test_a_mixer_on_packed_documents_as_on_each_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilm.ops.gated_scan._fits_kernels", lambda *_: True)
    sizes, config = (2, 31, 3), Mamba2Config(head_width=32, state_size=16)
    mixer = Mamba2(config, 16).to(DEVICE)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, sum(sizes), 16, device=DEVICE, requires_grad=True)
    found: list[tuple[Tensor, Mamba2State]] = [mixer(part) for part in x.split(list(sizes), dim=1)]
    want = torch.cat([y for y, _ in found], dim=1), *found[-1][1]
    y, state = mixer(x, starts_BT=starts_of(sum(sizes), [2, 33]))
    got, leaves = (y, *state), [x, *mixer.parameters()]
    cotangents = [torch.randn_like(part) for part in want]
    gradients = [torch.autograd.grad(parts, leaves, cotangents) for parts in (got, want)]
    for one, other in zip((*got, *gradients[0]), (*want, *gradients[1]), strict=True):
        assert (one - other).norm() < 2e-5 * other.norm()
