"""LoRA is a term of the weight: first nothing, then learned, saved, merged, and taken off again."""

import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from equilm.hf.convert import load
from tests.hf.faces import IMPLICIT, KINDS, face, ours, ragged
from tests.nn.build import VOCAB

# peft calls what newer versions of the library have renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RECIPE = Path(__file__).parents[2] / "recipes" / "lora.py"


def adapted(kind: str, **settings: Any) -> Any:
    from equilm.hf.lora import for_equilm

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(face(kind), for_equilm(config))


def learned(kind: str) -> Any:
    """An adapter that is far from nothing."""
    model = adapted(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@torch.no_grad()
def logits(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=tokens_BT).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_reaches_every_projection(kind: str) -> None:
    model, (tokens_BT,) = adapted(kind), ragged(9)
    assert torch.equal(logits(model.eval(), tokens_BT), logits(face(kind), tokens_BT))
    named = {name.split(".lora_B")[0] for name, _ in model.named_parameters() if "lora_B" in name}
    wanted = ["in_proj", "out_proj"] if "mamba2" in kind else ["wq", "wk", "wv", "out_proj"]
    wanted += ["injection"] if kind in IMPLICIT else []
    assert all(any(name.endswith(one) for name in named) for one in wanted)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    # Each has a part in the output: its gradient is not zero.
    model.train()(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_disabled_and_unloaded(kind: str) -> None:
    plain, (tokens_BT,) = face(kind), ragged(9)
    before, model = logits(plain, tokens_BT), learned(kind)
    after = logits(model, tokens_BT)
    assert (after - before).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens_BT), before)
    assert torch.equal(logits(copy.deepcopy(model), tokens_BT), after)
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(logits(model, tokens_BT), after, atol=2e-3)
    model.unmerge_adapter()
    assert torch.allclose(logits(model, tokens_BT), after, atol=2e-3)
    assert torch.equal(logits(copy.deepcopy(model).unload(), tokens_BT), logits_of_base(model))
    assert torch.allclose(logits(model.merge_and_unload(), tokens_BT), after, atol=2e-3)


def logits_of_base(model: Any) -> torch.Tensor:
    (tokens_BT,) = ragged(9)
    with model.disable_adapter():
        return logits(model, tokens_BT)


@pytest.mark.parametrize("kind", IMPLICIT)
def test_an_adapter_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    from equilm.hf.lora import for_equilm

    model, (tokens_BT,) = learned(kind), ragged(9)
    expected = logits(model, tokens_BT)
    model.save_pretrained(tmp_path / "adapter")
    config = for_equilm(peft.LoraConfig.from_pretrained(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(face(kind), tmp_path / "adapter", config=config)
    assert torch.equal(logits(again.eval(), tokens_BT), expected)
    told = model.generate(input_ids=tokens_BT, max_new_tokens=4, do_sample=False)
    assert told.shape == (1, 13)
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        merged = load(tmp_path / "merged")(tokens_BT)[0]
    assert torch.allclose(merged, expected, atol=2e-3)


def test_options_that_are_no_term_of_the_weight_are_refused() -> None:
    for option in ({"lora_dropout": 0.1}, {"use_dora": True}):
        (name,) = option
        with pytest.raises(ValueError, match=f"{name}: expected none"):
            adapted("mamba2", **option)


@pytest.mark.parametrize("kind", ["implicit-mamba2", "attention"])
def test_the_recipe_learns_a_text(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    face(kind).save_pretrained(tmp_path / "model")
    text = " ".join(str(i % 5 % VOCAB) for i in range(200))
    (tmp_path / "text.txt").write_text(text)
    given = [tmp_path / "model", tmp_path / "text.txt", tmp_path / "out", "--tokenizer", "ids"]
    given += ["--steps", 21, "--length", 20, "--rate", 0.02, "--batch", 4]
    monkeypatch.setattr(sys, "argv", ["lora.py", *map(str, given)])
    runpy.run_path(str(RECIPE), run_name="__main__")
    losses = [
        float(line.split()[-1])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("step")
    ]
    assert losses[-1] < 0.7 * losses[0]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    merged, first = load(tmp_path / "out" / "merged"), ours(kind)
    assert torch.equal(merged.embedding, first.embedding)
    tokens_BT = torch.arange(20)[None] % 5
    with torch.no_grad():
        nats = [
            torch.nn.functional.cross_entropy(model(tokens_BT[:, :-1])[0][0], tokens_BT[0, 1:])
            for model in (merged, first)
        ]
    assert nats[0] < 0.7 * nats[1]
