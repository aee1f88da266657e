"""DeltaNet and DeltaProduct against a loop from their equations, and what two reflections learn."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.nn.deltanet import DeltaNet, DeltaNetConfig, DeltaProductConfig, DeltaState
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.tasks import WordProblem, WordProblemConfig, cross_entropy_sum
from tests.nn.build import WIDTH
from tests.nn.key_values import heads, inputs, outer, read, rms, scale
from tests.nn.reference import assert_same, mixer_of

CONFIGS: dict[str, Any] = {
    "deltanet": DeltaNetConfig(),
    "gated deltanet": DeltaNetConfig(conv_width=2, forget_gate=True, output_gate=True),
    "signed": DeltaNetConfig(eigenvalues="signed"),
    "three steps": DeltaProductConfig(steps=3, conv_width=1, forget_gate=True),
}


def convolved(mixer: DeltaNet, qkv_BTC: Tensor, window_BWC: Tensor) -> Tensor:
    taps_CW, padded_BSC = mixer.conv1d.effective()[:, 0], torch.cat([window_BWC, qkv_BTC], 1)
    shifted_BTCW = padded_BSC.unfold(1, mixer.config.conv_width, 1)
    return F.silu((shifted_BTCW * taps_CW).sum(-1) + mixer.conv1d.bias)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_its_equations(config: Any) -> None:
    mixer: DeltaNet = mixer_of(config)
    x_BTD, memory_BHNP, steps = inputs(2, 9, WIDTH), inputs(2, 2, 4, 4), config.steps
    window_BWC = inputs(2, config.conv_width - 1, mixer.channels)
    y_BTD, state = mixer(x_BTD, DeltaState(window_BWC, memory_BHNP))
    leaves = [x_BTD, memory_BHNP] + ([window_BWC] if config.conv_width > 1 else [])
    qkv_BTC, beta_BTX, fade_BTH, gate_BTI = mixer.in_proj(x_BTD).split(mixer.sizes, dim=-1)
    qkv_BTC, y = convolved(mixer, qkv_BTC, window_BWC), []
    for t in range(9):
        q_BI, *kv = qkv_BTC[:, t].split(WIDTH, dim=-1)
        if config.forget_gate:
            rate_BH = mixer.A_log.exp() * F.softplus(fade_BTH[:, t] + mixer.dt_bias)
            memory_BHNP = (-rate_BH).exp()[..., None, None] * memory_BHNP
        for j in range(steps):
            k_BHN = F.normalize(heads(kv[j]), dim=-1)
            beta_BH1 = beta_BTX[:, t, 2 * j : 2 * j + 2, None].sigmoid()
            beta_BH1 = 2 * beta_BH1 if config.eigenvalues == "signed" else beta_BH1
            error_BHP = heads(kv[steps + j]) - read(k_BHN, memory_BHNP)
            memory_BHNP = memory_BHNP + outer(beta_BH1 * k_BHN, error_BHP)
        y_BHP = read(F.normalize(heads(q_BI), dim=-1) / 2, memory_BHNP)
        y_BI = (rms(y_BHP) * scale(mixer)).flatten(1)
        y.append(mixer.output.out_proj(y_BI * F.silu(gate_BTI[:, t]) if gate_BTI.numel() else y_BI))
    got, want = [y_BTD, state.memory_BHNP], [torch.stack(y, 1), memory_BHNP]
    assert_same(mixer, got, want, leaves)


@torch.no_grad()
def test_the_forget_gate_starts_as_that_of_mamba2() -> None:
    mixer: DeltaNet = mixer_of(DeltaNetConfig(heads=8, forget_gate=True))
    step_H, rate_H = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.99e-3 <= float(step_H.min()) <= float(step_H.max()) <= 1.01e-1
    assert 1 <= float(rate_H.min()) <= float(rate_H.max()) <= 16


def accuracy_on_s3(config: Any) -> float:
    """Train one explicit layer on the word problem of S3, at most 10 tokens; ask it 16."""
    task = WordProblem(WordProblemConfig(group="S3"))
    model = LanguageModel(
        ModelConfig(vocab_size=task.vocab_size, width=32, num_layers=1, mixer=config),
        generator=torch.Generator().manual_seed(0),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 150)
    for step in range(150):
        length = min(10, 2 + step // 8)
        batch = task.batch(split="train", length=length, batch_size=32, seed=0, index=step)
        loss, count = cross_entropy_sum(model(batch.tokens_BT)[0], batch.targets_BT)
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    batch = task.batch(split="test", length=16, batch_size=64, seed=1, index=0)
    with torch.no_grad():
        answers_BT = model(batch.tokens_BT)[0].argmax(-1)
    return float((answers_BT == batch.targets_BT).float().mean())


def test_two_reflections_a_token_learn_to_multiply_permutations() -> None:
    """S3 is the symmetries of a triangle: its turns are two reflections, and no projection's."""
    sizes: dict[str, Any] = {"heads": 4, "conv_width": 1}
    assert accuracy_on_s3(DeltaProductConfig(**sizes)) > 0.97
    assert accuracy_on_s3(DeltaNetConfig(**sizes, eigenvalues="signed")) < 0.7
    assert accuracy_on_s3(DeltaProductConfig(**sizes, eigenvalues="positive")) < 0.7
