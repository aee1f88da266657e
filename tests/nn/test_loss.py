"""The loss of a model is the cross entropy of its logits, whichever way it is made."""

import re

import pytest
import torch
from torch import Tensor

from equilm.nn.model import MIXERS, LanguageModel
from equilm.ops import cross_entropy
from equilm.tasks import IGNORE, cross_entropy_sum
from tests.nn.build import VOCAB, language_model, tokens_of
from tests.tolerance import assert_close


def targets_of(tokens_BT: Tensor) -> Tensor:
    targets_BT = tokens_BT.roll(-1, 1)
    targets_BT[:, -1] = IGNORE
    return targets_BT


def gradients_of(model: LanguageModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("chunk_bytes", [2**27, 1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MIXERS)
def test_the_loss_is_that_of_the_logits(
    kind: str, tied: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", chunk_bytes)
    model = language_model(kind, vocab_multiple=8, tie_embeddings=tied)
    tokens_BT = tokens_of(3, 5)
    targets_BT = targets_of(tokens_BT)
    found = model.loss(tokens_BT, targets_BT, ignore=IGNORE)
    gradients = gradients_of(model, found.loss_sum / found.num_targets)
    logits_BTV, _ = model(tokens_BT)
    # The task's loss is taken in float32, so it only says that the two mean the same.
    task_loss, count = cross_entropy_sum(logits_BTV, targets_BT)
    assert found.num_targets == count == 12
    assert_close("loss", found.loss_sum.float(), task_loss)
    assert found.num_correct == (logits_BTV.argmax(-1) == targets_BT).sum()
    log_p_BTV = logits_BTV.log_softmax(-1)
    loss = -log_p_BTV[:, :-1].gather(-1, targets_BT[:, :-1, None]).mean()
    for got, expected in zip(gradients, gradients_of(model, loss), strict=True):
        assert_close("mixer", got, expected)


@pytest.mark.parametrize("wrong", [VOCAB, -1, -101])
def test_a_bad_target_is_named(wrong: int) -> None:
    # Padding rows of the embedding are no targets.
    model, tokens_BT = language_model("mamba2", vocab_multiple=8), tokens_of(2, 3)
    targets_BT = targets_of(tokens_BT)
    targets_BT[1, 1] = wrong
    told = re.escape(f"targets: expected ids in [0, {VOCAB}) or -100")
    with pytest.raises(ValueError, match=told):
        model.loss(tokens_BT, targets_BT, ignore=IGNORE)
    with pytest.raises(ValueError, match="tokens: expected ids"):
        model.loss(tokens_BT + VOCAB, tokens_BT, ignore=IGNORE)
