"""`generate` of the library: with and without the state, in every mode, each row as alone."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hf.faces import IMPLICIT, face, ours, padded, ragged
from tests.nn.build import VOCAB

transformers = pytest.importorskip("transformers")

NEW = 6


@torch.no_grad()
def greedy(kind: str, prompt: Tensor, new: int = NEW) -> Tensor:
    """Return the prompt and the likeliest tokens after it, by our own model and state."""
    model = ours(kind)
    logits, state = model(prompt, model.init_state(1, prompt.shape[1] + new))
    tokens = [prompt]
    for _ in range(new):
        tokens.append(logits[:, -1:].argmax(-1))
        logits, state = model(tokens[-1], state)
    return torch.cat(tokens, dim=1)


def test_greedy_tokens_are_ours_with_and_without_the_state(kind: str) -> None:
    (prompt,) = ragged(7)
    expected = greedy(kind, prompt)
    for cached in (True, False):
        got = face(kind).generate(prompt, max_new_tokens=NEW, do_sample=False, use_cache=cached)
        assert torch.equal(got, expected)


def test_prompts_padded_on_the_left_go_on_as_alone(kind: str) -> None:
    prompts = ragged(3, 8, 1)
    tokens_BT, mask_BT = padded(prompts, left=True)
    for cached in (True, False):
        got = face(kind).generate(
            tokens_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False, use_cache=cached
        )
        for row, prompt in zip(got, prompts, strict=True):
            assert torch.equal(row[-prompt.shape[1] - NEW :], greedy(kind, prompt)[0])


def test_a_row_that_ends_is_padded_and_disturbs_no_other(kind: str) -> None:
    prompts = ragged(3, 8, 5)
    tokens_BT, mask_BT = padded(prompts, left=True)
    expected = [greedy(kind, prompt, 12)[0, prompt.shape[1] :] for prompt in prompts]
    stop = int(expected[0][2])
    got = face(kind).generate(
        tokens_BT,
        attention_mask=mask_BT,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
    )
    for row, whole in zip(got[:, 8:], expected, strict=True):
        ends = (whole == stop).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(whole)
        assert torch.equal(row[:length], whole[:length])
        assert (row[length:] == 0).all()


def test_beams_score_what_the_model_says(kind: str) -> None:
    model, prompts = face(kind), torch.cat(ragged(6, 6))
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    found = [
        model.generate(
            prompts,
            use_cache=cached,
            output_scores=True,
            return_dict_in_generate=True,
            num_return_sequences=2,
            **options,
        )
        for cached in (True, False)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert found[0].sequences.shape == (4, 6 + NEW)
    with torch.no_grad():
        logits, _ = ours(kind)(found[0].sequences)
    chosen = logits.log_softmax(-1)[:, 5:-1].gather(2, found[0].sequences[:, 6:, None])
    torch.testing.assert_close(
        found[0].sequences_scores, chosen[..., 0].sum(1) / NEW, rtol=1e-4, atol=1e-4
    )


def test_samples_are_drawn_alike_with_and_without_the_state(kind: str) -> None:
    model, prompts = face(kind), torch.cat(ragged(6, 6))
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_return_sequences": 3}
    found = []
    for cached in (True, False):
        torch.manual_seed(0)
        found.append(
            model.generate(
                prompts, use_cache=cached, do_sample=True, temperature=3.0, top_k=0, **options
            )
        )
    assert torch.equal(*found)
    assert found[0].shape == (6, 6 + NEW)
    assert len(torch.unique(found[0][:, 6:], dim=0)) > 2


def test_generation_goes_on_from_a_cache(kind: str) -> None:
    model = face(kind)
    prompts = ragged(3, 8)
    tokens_BT, mask_BT = padded(prompts, left=True)
    first = model.generate(
        tokens_BT,
        attention_mask=mask_BT,
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert first.past_key_values.get_seq_length() == 8 + 2
    mask_BT = torch.nn.functional.pad(mask_BT, (0, 3), value=1)
    got = model.generate(
        first.sequences,
        attention_mask=mask_BT,
        past_key_values=first.past_key_values,
        max_new_tokens=NEW - 3,
        do_sample=False,
    )
    for row, prompt in zip(got, prompts, strict=True):
        assert torch.equal(row[-prompt.shape[1] - NEW :], greedy(kind, prompt)[0])


def test_a_prompt_may_be_embeddings(kind: str) -> None:
    model, (prompt,) = face(kind), ragged(7)
    embedded = model.get_input_embeddings()(prompt)
    got = model.generate(inputs_embeds=embedded, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(got, greedy(kind, prompt)[:, 7:])


def test_a_prompt_may_be_read_in_chunks(kind: str) -> None:
    from equilm.hf.cache import EquilmCache

    prompts = ragged(11, 6)
    tokens_BT, mask_BT = padded(prompts, left=True)
    got = face(kind).generate(
        tokens_BT,
        attention_mask=mask_BT,
        past_key_values=EquilmCache(),
        prefill_chunk_size=4,
        max_new_tokens=NEW,
        do_sample=False,
    )
    for row, prompt in zip(got, prompts, strict=True):
        assert torch.equal(row[-prompt.shape[1] - NEW :], greedy(kind, prompt)[0])


def test_weights_are_folded_once_for_all_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from equilm.nn.linear import Weight

    folded: list[Weight] = []
    prepare = Weight.prepare

    def counted(part: Weight) -> None:
        folded.append(part)
        prepare(part)

    monkeypatch.setattr(Weight, "prepare", counted)
    model = face(kind)
    model.generate(ragged(5)[0], max_new_tokens=4, do_sample=False)
    parts = [part for part in model.modules() if isinstance(part, Weight)]
    assert len(folded) == len(parts) == len({id(part) for part in folded})
    assert not any(part.is_prepared() for part in parts)


class Words:
    """Stands for a tokenizer: every token is a word."""

    def decode(self, tokens: Any, **options: Any) -> str:
        return "".join(f"{int(token)} " for token in tokens)


def test_tokens_are_streamed(kind: str) -> None:
    model, (prompt,) = face(kind), ragged(5)
    streamer = transformers.TextIteratorStreamer(Words(), skip_prompt=True, timeout=30)
    thread = threading.Thread(
        target=model.generate,
        args=(prompt,),
        kwargs={"max_new_tokens": NEW, "do_sample": False, "streamer": streamer},
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == Words().decode(greedy(kind, prompt)[0, 5:])


def test_tokens_cannot_be_taken_back_so_assistants_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="stateful"):
        face(kind).generate(ragged(5)[0], max_new_tokens=3, prompt_lookup_num_tokens=2)


@pytest.mark.filterwarnings("ignore:.* tokens were not solved")
@pytest.mark.parametrize("kind", IMPLICIT)
def test_dials_reach_every_step(kind: str) -> None:
    from equilm.nn.equilibrium import observed

    model, (prompt,) = face(kind), ragged(5)
    with observed(model) as found:
        model.generate(prompt, max_new_tokens=3, do_sample=False, tolerance=1e-9, max_steps=4)
    assert [int(solution.steps.max()) for solution in found] == [4, 4, 4]


def test_a_misspelt_dial_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="tolerence"):
        face(kind).generate(ragged(5)[0], max_new_tokens=3, tolerence=0.1)


def test_every_token_can_be_drawn(kind: str) -> None:
    torch.manual_seed(0)
    prompt = torch.ones(64, 1, dtype=torch.int64)
    got = face(kind).generate(
        prompt, max_new_tokens=4, do_sample=True, temperature=1e4, top_k=0, top_p=1.0
    )
    assert set(got.flatten().tolist()) == set(range(VOCAB))
