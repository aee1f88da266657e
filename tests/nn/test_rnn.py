"""Elman, GRU and LSTM against PyTorch's own modules, with ragged rows and all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilm.nn.rnn import Recurrent
from tests.nn.build import WIDTH, language_model
from tests.tolerance import assert_close

THEIRS: dict[str, Callable[..., nn.RNNBase]] = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def pair(kind: str) -> tuple[Recurrent, nn.RNNBase]:
    mixer = language_model(kind, num_layers=1).core.get_submodule("layers.0.mixer")
    assert isinstance(mixer, Recurrent)
    theirs = THEIRS[kind](mixer.inner, mixer.inner, batch_first=True).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(theirs, f"{name}_l0", getattr(mixer, name))
    return mixer, theirs


def expected(
    mixer: Recurrent, theirs: nn.RNNBase, x_BTD: Tensor, parts: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    hidden = [part_BI[None] for part_BI in parts]
    u_BTI = mixer.in_proj(x_BTD)
    y_BTI, after = theirs(u_BTI, tuple(hidden) if len(hidden) > 1 else hidden[0])
    after = after if isinstance(after, tuple) else (after,)
    return mixer.out_proj(y_BTI), [part_1BI[0] for part_1BI in after]


@pytest.mark.parametrize("kind", THEIRS)
def test_outputs_states_and_gradients_are_those_of_pytorch(kind: str) -> None:
    mixer, theirs = pair(kind)
    x_BTD = torch.randn(3, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    state = mixer.init_state(3, 0)
    before = [torch.randn_like(part_BI).requires_grad_() for part_BI in state]
    got_BTD, got = mixer(x_BTD, type(state)(*before))
    want_BTD, want = expected(mixer, theirs, x_BTD, before)
    inputs = [x_BTD, *before, *(weight for weight in mixer.parameters())]
    gradients = []
    for outs in ([got_BTD, *got], [want_BTD, *want]):
        assert len(outs) == 1 + len(before)
        torch.manual_seed(1)
        loss = torch.stack([(out * torch.randn_like(out)).sum() for out in outs]).sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    for one, other in zip([got_BTD, *got], [want_BTD, *want], strict=True):
        assert_close("mixer", one, other)
    for one, other in zip(*gradients, strict=True):
        assert_close("mixer", one, other)


@pytest.mark.parametrize("kind", THEIRS)
def test_the_state_is_float32_under_autocast(kind: str) -> None:
    mixer = pair(kind)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = mixer(torch.randn(2, 3, WIDTH))
    assert all(part_BI.dtype == torch.float32 for part_BI in state)
