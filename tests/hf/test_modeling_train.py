"""Trainer, pipelines, a new vocabulary, recomputing: what others do with models of the library."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hf.faces import config, face, ragged
from tests.nn.build import VOCAB
from tests.tolerance import assert_close

transformers = pytest.importorskip("transformers")


def rows(count: int) -> list[dict[str, Any]]:
    """Return sequences that count up, so that the next token can be told."""
    return [
        {"input_ids": [1 + (start + t) % (VOCAB - 1) for t in range(12)]} for start in range(count)
    ]


def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens_BT = torch.tensor([row["input_ids"] for row in batch])
    return {"input_ids": tokens_BT, "labels": tokens_BT.clone()}


@pytest.mark.filterwarnings("ignore:.* tokens were not solved")
@pytest.mark.parametrize("kind", ["attention", "implicit-mamba2"])
def test_trainer_trains_evaluates_and_saves(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from equilm.hf.modeling import EquilmForCausalLM

    torch.manual_seed(0)
    solve: dict[str, Any] = {"equilibrium": None}
    if kind.startswith("implicit"):
        solve = {"equilibrium": {"solve": {"max_steps": 4}, "gradient": {"steps": 1}}}
    plain = config(kind, width=32, dropout=0.1).to_dict() | solve
    model = EquilmForCausalLM(type(config(kind))(**plain))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=25,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=25,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(10),
        eval_dataset=rows(5),
        data_collator=collated,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.5 * before
    predicted = trainer.predict(rows(5))
    assert predicted.predictions.shape == (5, 12, VOCAB)
    again = EquilmForCausalLM.from_pretrained(tmp_path / "checkpoint-25")
    batch = collated(rows(5))
    with torch.no_grad():
        assert_close("elementwise", again(**batch).loss, torch.tensor(after))


def test_gradients_of_two_halves_are_those_of_the_whole(kind: str) -> None:
    """Trainer divides by the tokens of all micro-batches."""
    model, tokens_BT = face(kind).train(), torch.cat(ragged(7, 7))
    model(tokens_BT, labels=tokens_BT).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for half_BT in tokens_BT.split(1):
        model(half_BT, labels=half_BT, num_items_in_batch=torch.tensor(12)).loss.backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)


def test_recomputing_changes_no_gradient(kind: str) -> None:
    model, tokens_BT = face(kind).train(), torch.cat(ragged(7, 7))
    loss = model(tokens_BT, labels=tokens_BT).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    calls: list[int] = []
    # Its name since version 5.23, and before.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)()
    for block in (part for part in model.modules() if type(part).__name__ == "Block"):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = model(tokens_BT, labels=tokens_BT).loss
    num_forward = len(calls)
    got = torch.autograd.grad(loss, list(model.parameters()))
    assert len(calls) > num_forward
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("size", [VOCAB + 5, VOCAB - 3])
def test_the_vocabulary_may_be_resized(kind: str, size: int, tmp_path: Path) -> None:
    from equilm.hf.convert import load
    from equilm.hf.modeling import EquilmForCausalLM

    model, (tokens,) = face(kind), ragged(9)
    tokens = tokens.clamp(max=min(size, VOCAB) - 1)
    before = model(tokens).logits
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size == len(model.get_input_embeddings().weight)
    logits = model(tokens).logits
    shared = min(size, VOCAB)
    assert logits.shape[-1] == size
    assert_close("row", logits[..., :shared], before[..., :shared])
    model.save_pretrained(tmp_path)
    again = EquilmForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens).logits, logits)
    assert_close("row", load(tmp_path)(tokens)[0], logits)
    tied = model.config.tie_word_embeddings
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def tokenizer() -> Any:
    """Return a tokenizer of words `w1`, `w2`, …, and padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0} | {f"w{index}": index for index in range(1, VOCAB)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", padding_side="left"
    )


def test_the_pipeline_of_text_generation(kind: str, tmp_path: Path) -> None:
    face(kind).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    generate = transformers.pipeline("text-generation", model=str(tmp_path), batch_size=2)
    prompts = ["w1 w2 w3", "w7"]
    answers = generate(prompts, max_new_tokens=4, do_sample=False, return_full_text=False)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
        expected = face(kind).generate(ids, max_new_tokens=4, do_sample=False)
        words = tokenizer().decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer[0]["generated_text"].split() == words.split()
