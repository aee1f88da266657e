"""The official client of OpenAI's against a real server: answers are those of `equilm.generate`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from equilm.decode.engine import Engine
from equilm.decode.generate import Generation, generate
from equilm.decode.request import Sampling
from equilm.decode.text import Bytes, Folder, Ids, Tokenizer
from equilm.nn.equilibrium import Equilibrium
from tests.decode.http_server import Running, language_model, running

MODEL = "tiny"
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    torch.set_num_threads(1)
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with client_of(server) as one:
        yield one


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def alone(prompt: str, sampling: Sampling = GREEDY, **settings: object) -> Generation:
    """What the library answers."""
    model, words = language_model(), Bytes()
    settings = {"max_tokens": 12, "tokenizer": words, "sampling": sampling, **settings}
    return generate(model, [prompt], **settings)[0]  # type: ignore[arg-type]


def test_a_completion_is_what_generate_says(client: openai.OpenAI) -> None:
    expected = alone("Once upon")
    got = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=12, temperature=0)
    (choice,) = got.choices
    assert choice.text == expected.text and choice.finish_reason == "length"
    assert choice.model_extra == {
        "token_ids": [token.id for token in expected.tokens],
        "steps": [token.steps for token in expected.tokens],
        "status": [token.status for token in expected.tokens],
    }
    assert len(set(choice.model_extra["steps"])) > 1
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (9, 12)
    assert got.model == MODEL and got.object == "text_completion"


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    expected = alone("Once upon")
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="Once upon",
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"residuals": True},
        )
    )
    *told, last = chunks
    assert "".join(chunk.choices[0].text for chunk in told) == expected.text
    extra = [chunk.choices[0].model_extra or {} for chunk in told]
    steps = [step for one in extra for step in one["steps"]]
    assert steps == [token.steps for token in expected.tokens]
    assert [len(row) for one in extra for row in one["residuals"]] == steps
    assert all(row[-1] <= 0.01 for one in extra for row in one["residuals"] if len(row) < 64)
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * 11 + ["length"]
    assert last.choices == [] and last.usage is not None and last.usage.total_tokens == 21


def test_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, seed=7)
    expected = [
        alone("It was", sampling),
        alone("It was", Sampling(**{**vars(sampling), "seed": 8})),
    ]
    got = client.completions.create(
        model=MODEL,
        prompt="It was",
        max_tokens=12,
        n=2,
        seed=7,
        temperature=0.9,
        top_p=0.95,
        extra_body={"top_k": 40, "min_p": 0.01},
    )
    assert [choice.text for choice in got.choices] == [one.text for one in expected]
    assert got.choices[0].text != got.choices[1].text
    assert got.usage is not None and got.usage.prompt_tokens == 6


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(model=MODEL, prompt="It was", max_tokens=8).choices[0].text
        for _ in range(3)
    }
    assert len(texts) > 1


def test_many_prompts_and_token_ids(client: openai.OpenAI) -> None:
    prompts = ["a", "It was a dark and stormy night", "So"]
    expected = [alone(prompt).text for prompt in prompts]
    ids = [list(prompt.encode()) for prompt in prompts]
    for given in (prompts, ids):
        got = client.completions.create(model=MODEL, prompt=given, max_tokens=12, temperature=0)
        assert [choice.text for choice in got.choices] == expected
        assert [choice.index for choice in got.choices] == [0, 1, 2]
    one = client.completions.create(model=MODEL, prompt=ids[1], max_tokens=12, temperature=0)
    assert one.choices[0].text == expected[1]


def test_the_dial_is_turned(client: openai.OpenAI) -> None:
    expected = alone("Once upon", tolerance=0.1, max_steps=5)
    got = client.completions.create(
        model=MODEL,
        prompt="Once upon",
        max_tokens=12,
        temperature=0,
        extra_body={"solver": {"tolerance": 0.1, "max_steps": 5}},
    )
    extra = got.choices[0].model_extra or {}
    assert extra["steps"] == [token.steps for token in expected.tokens]
    assert max(extra["steps"]) <= 5 < max(token.steps for token in alone("Once upon").tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_told(
    client: openai.OpenAI, server: Running, stream: bool
) -> None:
    whole = alone("Once upon").text
    stop = whole[4:6]
    got = client.completions.create(
        model=MODEL, prompt="Once upon", max_tokens=12, temperature=0, stop=[stop], stream=stream
    )
    pieces = [chunk.choices[0] for chunk in got] if stream else [got.choices[0]]  # type: ignore[union-attr]
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert server.settles()


def test_logprobs_and_echo_as_an_evaluation_harness_wants_them(client: openai.OpenAI) -> None:
    prompt = list(b"Once upon")
    got = client.completions.create(
        model=MODEL, prompt=[prompt], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    told: Any = got.choices[0].logprobs
    model = language_model()
    assert isinstance(model.core, Equilibrium)
    model.core.solve = replace(model.core.solve, tolerance=1e-6, max_steps=200)
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt]))[0][0]
    expected = logits_TV.log_softmax(-1)[torch.arange(8), torch.tensor(prompt[1:])]
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    torch.testing.assert_close(
        torch.tensor(told.token_logprobs[1:9]), expected, rtol=0.05, atol=0.05
    )
    for chosen, top in zip(told.token_logprobs[1:], told.top_logprobs[1:], strict=True):
        assert chosen <= max(top.values())
    assert told.tokens[:9] == [*"Once upon"]
    assert got.choices[0].text.startswith("Once upon") and len(told.tokens) == 10
    alone_too = client.completions.create(
        model=MODEL, prompt="Once upon", max_tokens=0, logprobs=1, echo=True
    )
    assert alone_too.choices[0].text == "Once upon" and alone_too.choices[0].logprobs is not None
    assert alone_too.choices[0].logprobs.token_logprobs == told.token_logprobs[:9]
    assert alone_too.usage is not None and alone_too.usage.completion_tokens == 0


def test_models_are_listed(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == MODEL and client.models.retrieve(MODEL) == card
    with pytest.raises(openai.NotFoundError, match="GET /v1/models"):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.completions.create(model="gpt-5", prompt="a")


def test_trackers_speak_in_token_ids() -> None:
    model = language_model(vocab_size=6)
    expected = generate(model, [[3, 1, 4]], max_tokens=5, sampling=GREEDY)[0]
    with running(Engine(model), Ids()) as server, client_of(server) as client:
        for prompt in ("3 1 4", [3, 1, 4]):
            got = client.completions.create(
                model=MODEL, prompt=prompt, max_tokens=5, temperature=0, logprobs=20
            )
            assert got.choices[0].text == expected.text
            assert got.choices[0].text.split() == [str(token.id) for token in expected.tokens]
        echoed = client.completions.create(
            model=MODEL, prompt="3 1 4", max_tokens=5, temperature=0, logprobs=1, echo=True
        ).choices[0]
        assert echoed.logprobs is not None and echoed.logprobs.tokens is not None
        assert echoed.logprobs.tokens[:3] == ["3", " 1", " 4"]
        assert "".join(echoed.logprobs.tokens) == echoed.text
        with pytest.raises(openai.BadRequestError, match=r"- prompt: expected token ids such"):
            client.completions.create(model=MODEL, prompt="once upon")
        with pytest.raises(openai.BadRequestError, match=r"prompt: expected at least one token"):
            client.completions.create(model=MODEL, prompt="")
        with pytest.raises(openai.BadRequestError, match=r"expected ids in \[0, 6\), got 6"):
            client.completions.create(model=MODEL, prompt=[6])
        with pytest.raises(openai.BadRequestError, match="a chat template, got token ids"):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hello"}]
            )


def test_an_empty_prompt_begins_with_the_end_token() -> None:
    model = language_model(vocab_size=257)
    expected = generate(model, [[256]], tokenizer=Bytes(), max_tokens=5, sampling=GREEDY)[0]
    with running(Engine(model), Bytes()) as server, client_of(server) as client:
        got = client.completions.create(model=MODEL, prompt="", max_tokens=5, temperature=0)
        assert got.choices[0].text == expected.text
        assert got.usage is not None and got.usage.prompt_tokens == 1


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer of bytes with a template, made here."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    own = PreTrainedTokenizerFast(tokenizer_object=fast)
    own.chat_template = (
        "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}"
        "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    )
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    own.save_pretrained(folder)
    return Folder(folder)


def test_chat(chatty: Tokenizer) -> None:
    model = language_model()
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hello"}]
    prompt = "<system>Be.\n<user>Hello\n<assistant>"
    expected = generate(model, [prompt], tokenizer=chatty, max_tokens=9, sampling=GREEDY)[0]
    with running(Engine(model), chatty) as server, client_of(server) as client:
        ask = {"model": MODEL, "temperature": 0, "max_completion_tokens": 9, "logprobs": True}
        got = client.chat.completions.create(**ask, messages=messages, top_logprobs=2)  # type: ignore[call-overload]
        choice = got.choices[0]
        assert choice.message.content == expected.text and choice.message.role == "assistant"
        assert got.usage.prompt_tokens == len(prompt) and choice.finish_reason == "length"
        assert choice.model_extra["steps"] == [token.steps for token in expected.tokens]
        listed = choice.logprobs.content
        assert len(listed) == 9 and all(len(one.top_logprobs) == 2 for one in listed)
        assert all(one.logprob == one.top_logprobs[0].logprob for one in listed)
        parts = [{"role": "system", "content": [{"type": "text", "text": "Be."}]}, messages[1]]
        chunks = list(client.chat.completions.create(**ask, messages=parts, stream=True))  # type: ignore[call-overload]
        told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert told == expected.text
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * 8
        with pytest.raises(openai.BadRequestError, match="no robots"):
            client.chat.completions.create(model=MODEL, messages=[{"role": "robot", "content": ""}])  # type: ignore[list-item, misc]
