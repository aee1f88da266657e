"""A retrofitted model first answers as the explicit one did, in every mode, and then learns."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm import tree
from equilm.cli import main
from equilm.decode.generate import generate
from equilm.decode.request import Sampling
from equilm.hf.convert import load
from equilm.hf.retrofit import retrofit
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.folder import save_model
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve import Phantom, Solve, Status
from tests.hf.folders import FOREIGN, LLAMA, MAMBA2, make, same, write_foreign

CONFIGS = [MAMBA2, LLAMA, replace(MAMBA2, weight_norm=True), replace(LLAMA, vocab_multiple=8)]


def some(config: ModelConfig) -> tuple[LanguageModel, Equilibrium, LanguageModel, torch.Tensor]:
    """An explicit model, its implicit one with its core, and tokens."""
    explicit = make(config).eval()
    implicit = retrofit(explicit)
    assert isinstance(implicit.core, Equilibrium)
    tokens_BT = torch.randint(0, 11, (3, 20), generator=torch.Generator().manual_seed(3))
    return explicit, implicit.core, implicit, tokens_BT


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_the_first_output_is_the_explicit_one(config: ModelConfig) -> None:
    explicit, core, implicit, tokens_BT = some(config)
    expected, _ = explicit(tokens_BT)
    for max_steps in (0, 1, 24):
        core.solve = Solve(max_steps=max_steps)
        assert torch.equal(implicit(tokens_BT)[0], expected)
    for window in (1, 7):
        core.solve = Solve(window=window, tolerance=1e-6)
        with observed(implicit) as found:
            assert torch.allclose(implicit(tokens_BT)[0], expected, atol=1e-6)
        assert bool((found[0].status == Status.CONVERGED).all())
    valid_B = torch.tensor([20, 3, 11])
    padded, _ = implicit(tokens_BT, valid_B=valid_B)
    assert torch.allclose(padded[1, :3], expected[1, :3], atol=1e-6)


@pytest.mark.parametrize("config", [MAMBA2, LLAMA])
@torch.no_grad()
def test_in_half_precision_too(config: ModelConfig) -> None:
    explicit, _, implicit, tokens_BT = some(config)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(implicit(tokens_BT)[0], explicit(tokens_BT)[0])
    explicit, implicit = explicit.bfloat16(), implicit.bfloat16()
    assert torch.equal(implicit(tokens_BT)[0], explicit(tokens_BT)[0])


@pytest.mark.parametrize("config", [MAMBA2, LLAMA])
def test_it_generates_as_the_explicit_one(config: ModelConfig) -> None:
    explicit, _, implicit, _ = some(config)
    greedy = Sampling(temperature=0.0)
    texts = [
        generate(model, [[1, 2, 3], [4]], max_tokens=8, sampling=greedy)
        for model in (explicit, implicit)
    ]
    for one, other in zip(*texts, strict=True):
        assert one.text == other.text


@pytest.mark.parametrize("config", CONFIGS)
def test_the_gradient_of_old_parameters_is_the_explicit_one(config: ModelConfig) -> None:
    explicit, core, implicit, tokens_BT = some(config)
    core.gradient = Phantom(damping=1.0)
    for model in (explicit, implicit):
        for parameter in model.parameters():
            parameter.requires_grad_()
        model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], ignore=-1).loss_sum.backward()
    new = dict(implicit.named_parameters())
    for name, parameter in explicit.named_parameters():
        grad = new[name.replace("core.", "core.body.stack.", 1)].grad
        assert grad is not None and parameter.grad is not None
        assert torch.allclose(grad, parameter.grad, atol=1e-4, rtol=1e-3), name
    for name in ("core.body.gate", "core.injection.bias"):
        grad = new[name].grad
        assert config.weight_norm or (grad is not None and grad.abs().max() > 0), name


@pytest.mark.parametrize("config", [MAMBA2, LLAMA])
def test_training_goes_on_and_makes_it_implicit(config: ModelConfig) -> None:
    _, core, implicit, _ = some(config)
    core.solve = Solve(max_steps=8, tolerance=1e-3)
    optimizer = torch.optim.AdamW(implicit.parameters(), lr=1e-2)
    # Rows of one period, so that there is something to learn.
    tokens_BT = (torch.arange(25) % 5 + torch.arange(6)[:, None]) % 11
    losses = []
    for _ in range(30):
        loss = implicit.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], ignore=-1)
        losses.append((loss.loss_sum / loss.num_targets).item())
        optimizer.zero_grad()
        loss.loss_sum.backward()
        torch.nn.utils.clip_grad_norm_(implicit.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    gate = dict(implicit.named_parameters())["core.body.gate"]
    assert gate.abs().max() > 1e-3
    with torch.no_grad(), observed(implicit.eval()) as found:
        implicit(tokens_BT)
    assert found[0].steps.float().mean() > 3


@pytest.mark.parametrize("config", [MAMBA2, LLAMA])
def test_documents_in_a_row_are_kept_apart(config: ModelConfig) -> None:
    explicit, core, implicit, tokens_BT = some(config)
    core.gradient = Phantom(damping=1.0)
    sums = []
    for model in (explicit, implicit):
        model.reset_at(4)
        loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], ignore=-1)
        sums.append(loss.loss_sum.item())
    explicit.reset_at(None)
    leaking = explicit.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], ignore=-1).loss_sum.item()
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    assert sums[0] != pytest.approx(leaking, rel=1e-5)


@pytest.mark.parametrize("kind", FOREIGN)
def test_the_command_line_retrofits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write_foreign(tmp_path / kind, kind), tmp_path / "implicit"
    command = ["equilm", "convert", str(source), str(target), "--implicit"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert capsys.readouterr().out.endswith("parameters\n")
    assert same(load(target), retrofit(load(source)))
    with pytest.raises(ValueError, match="implicit: expected an explicit model"):
        retrofit(load(target))
    monkeypatch.setattr(sys, "argv", [*command, "--to", "llama"])
    with pytest.raises(SystemExit):
        main()
    assert "implicit: expected --to equilm with it" in capsys.readouterr().err


def test_the_reference_and_the_library_have_no_gate(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from equilm.hf.export import export
    from equilm.hf.foreign import write_foreign as write

    model = retrofit(make(MAMBA2))
    save_model(model, tmp_path / "ours")
    with pytest.raises(ValueError, match="equilibrium: implicit_mamba2 folders cannot hold"):
        write(tmp_path / "ours", tmp_path / "theirs", "reference")
    # Our own face for that library has.
    export(tmp_path / "ours", tmp_path / "face")
    assert same(load(tmp_path / "face"), model)


@torch.no_grad()
def test_a_token_may_leave_the_state_of_some_rows() -> None:
    _, core, implicit, tokens_BT = some(MAMBA2)
    _, state = implicit(tokens_BT)
    u_B1E = core.inject(implicit.embed(tokens_BT[:, :1]))
    z_B1D, wanted_B = torch.randn(3, 1, MAMBA2.width), torch.tensor([True, False, True])
    y_B1D, after = core.body(z_B1D, state, u_B1E)
    y_part_B1D, part = core.body.advance_some(z_B1D, state, u_B1E, wanted_B)
    assert torch.equal(y_part_B1D, y_B1D)
    assert torch.equal(core.body.peek(z_B1D, state, u_B1E), y_B1D)
    for leaf, whole in zip(tree.leaves(part), tree.leaves(after), strict=True):
        assert torch.equal(leaf[wanted_B], whole[wanted_B])
