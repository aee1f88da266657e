"""The operations that are timed, at the shape of a model.

Each is called as the model calls it, with weights in the type of products. A new one is a function
and a row in a table at the end. Read `op_rows.py` next.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.measure.bench import attention_operations, mamba2_operations
from equilm.measure.bench.floors import stack_work
from equilm.measure.bench.inputs import Inputs
from equilm.measure.bench.operation import Operation, Outputs, of_module
from equilm.nn.model import ModelConfig
from equilm.nn.norm import compute_dtype
from equilm.ops.cross_entropy import linear_cross_entropy
from equilm.ops.norm import add_rms_norm
from equilm.tasks import IGNORE


def add_norm(inputs: Inputs) -> Operation:
    """The addition to the residual stream, and the norm of the sum."""
    width = inputs.config.width

    def run(r_BTD: Tensor, y_BTD: Tensor, weight_D: Tensor) -> Outputs:
        return add_rms_norm(r_BTD, y_BTD, weight_D, dtype=compute_dtype(r_BTD))

    stream_BTD = inputs.wide(inputs.batch, inputs.length, width)
    rows = (stream_BTD, inputs.tokens(width))
    return Operation(run=run, rows=rows, weights=(inputs.wide(width),))


def block(inputs: Inputs) -> Operation:
    """One sweep of a block: stream, branch and injection in, stream and branch out."""
    width, itemsize = inputs.config.width, inputs.place.dtype.itemsize
    work = stack_work(inputs.stack, inputs.batch, inputs.length, itemsize)

    def call(block: Callable[..., Outputs], r_BTD: Tensor, y_BTD: Tensor, u_BTE: Tensor) -> Outputs:
        return block(r_BTD, y_BTD, None, u_BTE, None)[:2]

    stream_BTD = inputs.wide(inputs.batch, inputs.length, width)
    injection_BTE = inputs.tokens(inputs.block.mixer.inject_width)
    rows = (stream_BTD, inputs.tokens(width), injection_BTE)
    return of_module(inputs.block, call, rows, inputs.place, flops=work.flops, bytes=work.bytes)


def cross_entropy(inputs: Inputs) -> Operation:
    """The head and the loss, by the function that training uses."""
    config = inputs.config
    vocabulary, ignore = config.vocab_size, IGNORE
    assert vocabulary is not None

    def run(z_BTD: Tensor, targets_BT: Tensor, head_VD: Tensor) -> Outputs:
        found = linear_cross_entropy(
            z_BTD, head_VD, targets_BT, vocab_size=vocabulary, ignore=ignore
        )
        return (found.loss_sum,)

    def twin(z_BTD: Tensor, targets_BT: Tensor, head_VD: Tensor) -> Outputs:
        logits_BTV = F.linear(z_BTD, head_VD[:vocabulary])
        targets = targets_BT.flatten()
        return (F.cross_entropy(logits_BTV.flatten(0, 1), targets, reduction="sum"),)

    shape = (inputs.batch, inputs.length)
    device = inputs.place.device
    targets_BT = torch.randint(vocabulary, shape, generator=inputs.generator, device=device)
    z_BTD = inputs.wide(*shape, config.width)
    head_VD = inputs.wide(config.padded_vocab_size, config.width) / config.width**0.5
    flops = 2.0 * targets_BT.numel() * head_VD.numel()
    return Operation(run=run, twin=twin, rows=(z_BTD, targets_BT), weights=(head_VD,), flops=flops)


Make = Callable[[Inputs], Operation]
MAMBA2: dict[str, Make] = {
    "in_proj": mamba2_operations.input_projection,
    "gated scan": mamba2_operations.gated_scan,
    "convolution": mamba2_operations.convolution,
    "scan": mamba2_operations.scan,
    "gated norm": mamba2_operations.gated_norm,
    "out_proj": mamba2_operations.output_projection,
}
ATTENTION: dict[str, Make] = {
    "in_proj": attention_operations.input_projection,
    "split heads": attention_operations.split_heads,
    "attention": attention_operations.attention,
    "out_proj": attention_operations.output_projection,
    "gated MLP": attention_operations.gated_mlp,
}
EVERYWHERE: dict[str, Make] = {
    "add norm": add_norm,
    "block": block,
    "cross entropy": cross_entropy,
}


def operations_of(config: ModelConfig) -> dict[str, Make]:
    """Return the operations of a model's blocks and of its head, by name."""
    own = {"mamba2": MAMBA2, "attention": ATTENTION}
    return own.get(config.mixer.kind, {}) | EVERYWHERE
