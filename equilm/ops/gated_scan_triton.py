"""Mamba2 between its projections as one autograd Function; `gated_scan.py` is its meaning and twin.

Forward: convolution, step sizes, scan, gated norm. Backward: all of these again but the norm, since
what they read lies there anyway; then the norm's, the scan's and the convolution's gradients, each
written into its part of one (B, T, E) tensor, which is the gradient of the projection and of the
injection alike. Read `conv_triton.py`, `scan_triton.py`, `norm_triton.py`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equilm.ops import conv_triton as conv
from equilm.ops import step_triton as steps
from equilm.ops.gated_scan import Weights
from equilm.ops.launch import as_bytes, last_dense
from equilm.ops.norm_backward_triton import gated_norm_backward
from equilm.ops.norm_triton import gated_norm
from equilm.ops.scan_backward_triton import Scanned, scan_backward
from equilm.ops.scan_triton import output, scan_forward, walk


class _Arguments(NamedTuple):
    """What is kept for the backward pass."""

    proj: Tensor  # (B, T, E)
    inject: Tensor | None  # (B, T, E)
    weights: Weights
    window: Tensor | None  # (B, W−1, C)
    first: Tensor | None  # (B, H, P, N)
    valid: Tensor | None  # (B,)
    starts: Tensor | None  # (B, T) bytes


class _ScanInputs(NamedTuple):
    """The arguments of a scan, in its order."""

    x: Tensor  # (B, T, H, P)
    dt: Tensor  # (B, T, H)
    a: Tensor  # (H,)
    b: Tensor  # (B, T, G, N)
    c: Tensor  # (B, T, G, N)
    skip: Tensor  # (H,)
    first: Tensor | None  # (B, H, P, N)
    starts: Tensor | None  # (B, T) bytes


class GatedScan(torch.autograd.Function):
    """`gated_scan` on a GPU, with its arguments in order and `weights` one by one."""

    @staticmethod
    def forward(ctx: Any, proj, inject, *rest):
        *vectors, window, first, groups, eps, valid, starts, dtype, scale = rest
        args = _Arguments(
            last_dense(proj),
            None if inject is None else last_dense(inject),
            Weights(*(vector.contiguous() for vector in vectors)),
            None if window is None else window.contiguous(),
            None if first is None else first.float().contiguous(),
            valid,
            as_bytes(starts),
        )
        ctx.save_for_backward(args.proj, args.inject, *args.weights, *args[3:])
        ctx.set_materialize_grads(False)
        ctx.groups, ctx.eps = groups, eps
        scanned, next_window = _prepare(args, groups)
        y, last = scan_forward(*scanned)
        gate, add = _gate(args)
        how = {"groups": groups, "eps": eps, "dtype": dtype or torch.float32, "scale": scale}
        return gated_norm(y.flatten(2), gate, add, args.weights.norm_I, **how), next_window, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout, dnext, dlast):
        proj, inject, *rest = ctx.saved_tensors
        args = _Arguments(proj, inject, Weights(*rest[:6]), *rest[6:])
        dproj, dweights, dwindow, dfirst = _backward(args, ctx.groups, ctx.eps, dout, dnext, dlast)
        dinject = None if inject is None else dproj.to(inject.dtype)
        return dproj, dinject, *dweights, dwindow, dfirst, *[None] * 6


def _backward(
    args: _Arguments,
    groups: int,
    eps: float,
    dout: Tensor | None,
    dnext: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Weights, Tensor | None, Tensor | None]:
    """The gradients of the projection, the weights and the states."""
    weights = args.weights
    inner, channels = len(weights.norm_I), len(weights.taps_CW)
    dproj = torch.empty(args.proj.shape, dtype=args.proj.dtype, device=args.proj.device)
    dgate, dxbc, draw = dproj.split([inner, channels, len(weights.a_log_H)], dim=-1)
    inputs, _ = _prepare(args, groups)
    states, _ = walk(inputs.x, inputs.dt, inputs.a, inputs.b, inputs.first, inputs.starts)
    y = output(*inputs[:6], inputs.starts, states)
    if dout is None:
        dout = torch.zeros_like(y).flatten(2)
    gate, add = _gate(args)
    # dy takes the place of y.
    flat = y.flatten(2)
    dnorm = gated_norm_backward(
        flat, gate, add, weights.norm_I, dout.contiguous(), flat, dgate, groups=groups, eps=eps
    )
    dlast = None if dlast is None else dlast.contiguous()
    scan = scan_backward(Scanned(*inputs, states), y, dlast)
    dtaps, dtaps_bias, dwindow = conv.convolve_backward(
        _conv_inputs(args), scan.dx.flatten(2), scan.dbc.flatten(2), dnext, dxbc
    )
    ddt_bias = steps.step_sizes_backward(_step_inputs(args), scan.ddt, draw)
    vectors = dtaps, dtaps_bias, ddt_bias, scan.da * inputs.a, scan.dskip, dnorm
    dweights = [d.to(weight.dtype) for d, weight in zip(vectors, weights, strict=True)]
    return dproj, Weights(*dweights), dwindow, scan.dfirst


def _prepare(args: _Arguments, groups: int) -> tuple[_ScanInputs, Tensor]:
    """What the scan reads, and the next window."""
    weights = args.weights
    heads, inner = len(weights.a_log_H), len(weights.norm_I)
    xbc, next_window = conv.convolve(_conv_inputs(args))
    dt, a = steps.step_sizes(_step_inputs(args))
    directions = (xbc.shape[2] - inner) // 2
    x, b, c = xbc.split([inner, directions, directions], dim=-1)
    inputs = _ScanInputs(
        x.unflatten(-1, (heads, -1)),
        dt,
        a,
        b.unflatten(-1, (groups, -1)),
        c.unflatten(-1, (groups, -1)),
        weights.skip_H.float(),
        args.first,
        args.starts,
    )
    return inputs, next_window


def _gate(args: _Arguments) -> tuple[Tensor, Tensor | None]:
    inner = len(args.weights.norm_I)
    return args.proj[..., :inner], None if args.inject is None else args.inject[..., :inner]


def _conv_inputs(args: _Arguments) -> conv.Inputs:
    weights = args.weights
    inner = len(weights.norm_I)
    here = slice(inner, inner + len(weights.taps_CW))
    add = None if args.inject is None else args.inject[..., here]
    return conv.Inputs(
        args.proj[..., here],
        add,
        weights.taps_CW,
        weights.taps_bias_C,
        args.window,
        args.valid,
        args.starts,
    )


def _step_inputs(args: _Arguments) -> steps.Inputs:
    weights = args.weights
    here = slice(len(weights.norm_I) + len(weights.taps_CW), None)
    add = None if args.inject is None else args.inject[..., here]
    return steps.Inputs(args.proj[..., here], add, weights.dt_bias_H, weights.a_log_H, args.valid)
