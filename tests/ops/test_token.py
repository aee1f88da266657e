"""One layer for one token a row: the kernels against the layer's own operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.fp8 import Scaled, by_rows, widened
from equilm.ops.gated_scan import Weights, gated_scan
from equilm.ops.norm import add_rms_norm

pytest.importorskip("triton", reason="kernels need Triton")

from equilm.ops import token_triton
from equilm.ops.token_triton import Layer, layer_token

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [
    (1, 24, 3, 12, 20, 1),
    (3, 24, 4, 8, 12, 2),
    (17, 40, 2, 16, 16, 1),
    (1, 24, 4, 8, 12, 2),
    (1, 24, 2, 16, 48, 1),
]


def draw(
    rows: int, width: int, heads: int, head_width: int, size: int, groups: int
) -> tuple[Layer, list[Tensor]]:
    inner = heads * head_width
    channels = inner + 2 * groups * size
    outputs = inner + channels + heads
    weights = Weights(
        taps_CW=torch.randn(channels, 4),
        taps_bias_C=torch.randn(channels),
        dt_bias_H=torch.randn(heads) - 2,
        a_log_H=torch.randn(heads),
        skip_H=torch.randn(heads),
        norm_I=torch.randn(inner),
    )
    layer = Layer(
        norm_D=torch.randn(width),
        in_ED=torch.randn(outputs, width) / width**0.5,
        out_DI=torch.randn(width, inner) / inner**0.5,
        inner=weights,
        groups=groups,
        eps=1e-5,
        inner_eps=1e-5,
    )
    r, y, u = torch.randn(rows, width), torch.randn(rows, width), torch.randn(rows, outputs)
    window, state = torch.randn(rows, 3, channels), torch.randn(rows, heads, head_width, size)
    return layer, [r, y, window, state, u]


def on_device(layer: Layer) -> Layer:
    return layer._replace(
        norm_D=layer.norm_D.to(DEVICE),
        in_ED=layer.in_ED.to(DEVICE),
        out_DI=layer.out_DI.to(DEVICE),
        inner=Weights(*(part.to(DEVICE) for part in layer.inner)),
    )


def twin(
    layer: Layer, r: Tensor, y: Tensor | None, window: Tensor, state: Tensor, u: Tensor | None
) -> list[Tensor]:
    r, a = add_rms_norm(r[:, None], None if y is None else y[:, None], layer.norm_D)
    proj = F.linear(a, layer.in_ED)
    inject = None if u is None else u[:, None]
    x, window, state = gated_scan(proj, inject, layer.inner, window, state, groups=layer.groups)
    return [r[:, 0], F.linear(x, layer.out_DI)[:, 0], window, state]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("advance", [False, True])
def test_layer(sizes: tuple[int, ...], bare: bool, advance: bool) -> None:
    layer, (r, y, window, state, u) = draw(*sizes)
    expected = twin(layer, r, None if bare else y, window, state, None if bare else u)
    there = on_device(layer)
    r, y, window, state, u = (part.to(DEVICE) for part in (r, y, window, state, u))
    before = window.clone(), state.clone()
    got = layer_token(
        r, None if bare else y, there, window, state, None if bare else u, advance=advance
    )
    for left, right in zip(got, expected if advance else [*expected[:2], None, None], strict=True):
        if left is None or right is None:
            assert left is right
        else:
            torch.testing.assert_close(left.cpu(), right, rtol=1e-4, atol=1e-5)
    assert torch.equal(window, before[0]) and torch.equal(state, before[1])


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_rows_not_wanted_are_left(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, (r, y, window, state, u) = draw(*sizes)
    layer = on_device(layer)
    r, y, window, state, u = (part.to(DEVICE) for part in (r, y, window, state, u))
    whole = layer_token(r, y, layer, window, state, u, advance=True)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    for wanted in ([False] * len(r), [row != 1 for row in range(len(r))]):
        wanted_R = torch.tensor(wanted, device=DEVICE)
        got = layer_token(r, y, layer, window, state, u, advance=wanted_R)
        assert torch.equal(got.r_RD, whole.r_RD) and torch.equal(got.y_RD, whole.y_RD)
        for part, all_ in ((got.window_RWC, whole.window_RWC), (got.scan_RHPN, whole.scan_RHPN)):
            assert part is not None and all_ is not None
            assert torch.equal(part[wanted_R], all_[wanted_R])
            assert part[~wanted_R].isnan().all()


def test_weights_in_8_bits() -> None:
    layer, (r, y, window, state, u) = draw(*SIZES[0])
    into, out = by_rows(layer.in_ED), by_rows(layer.out_DI)
    rounded = layer._replace(in_ED=widened(into, r.dtype), out_DI=widened(out, r.dtype))
    expected = twin(rounded, r, y, window, state, u)
    nothing = torch.full_like(layer.in_ED, torch.nan)
    there = layer._replace(
        norm_D=layer.norm_D.to(DEVICE),
        in_ED=nothing.to(DEVICE),
        out_DI=torch.full_like(layer.out_DI, torch.nan).to(DEVICE),
        inner=Weights(*(part.to(DEVICE) for part in layer.inner)),
        narrow_in=Scaled(*(part.to(DEVICE) for part in into)),
        narrow_out=Scaled(*(part.to(DEVICE) for part in out)),
    )
    r, y, window, state, u = (part.to(DEVICE) for part in (r, y, window, state, u))
    got = layer_token(r, y, there, window, state, u, advance=True)
    for left, right in zip(got, expected, strict=True):
        assert left is not None
        torch.testing.assert_close(left.cpu(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", [96, 768, 3352, 8512, 20000])
def test_a_thread_holds_at_most_128_weights(outputs: int) -> None:
    for whole in (64, 1024, 2048, 4096, 8192, 16384):
        owned, warps = token_triton._tile(outputs, whole)
        assert owned * whole <= 128 * 32 * warps


@pytest.mark.gpu
@pytest.mark.parametrize("advance", [False, True])
def test_kernels_that_begin_early_wait(advance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers behind each other in a graph, bit for bit what they are one after the other."""
    layers, states = [], []
    for _ in range(6):
        layer, (r, _, window, state, u) = draw(1, 256, 8, 64, 128, 1)
        layers.append(on_device(layer))
        states.append((window.to(DEVICE), state.to(DEVICE)))
    r, u = r.to(DEVICE), u.to(DEVICE)

    def sweep() -> list[Tensor]:
        stream, y, found = r.clone(), None, []
        for layer, before in zip(layers, states, strict=True):
            answer = layer_token(
                stream, y, layer, *before, u, advance=advance, follows=y is not None
            )
            stream, y = answer.r_RD, answer.y_RD
            found += [part for part in answer if part is not None]
        return found

    def capture() -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        sweep()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = sweep()
        return graph, found

    early = capture()
    monkeypatch.setattr(token_triton, "_can_begin_early", lambda device: False)
    plain = capture()
    for _ in range(50):
        for part in (r, *(part for before in states for part in before)):
            part.copy_(torch.randn(part.shape, device=DEVICE))
        early[0].replay()
        plain[0].replay()
        for left, right in zip(early[1], plain[1], strict=True):
            assert torch.equal(left, right)
