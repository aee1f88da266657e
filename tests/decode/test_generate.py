"""`generate` and `stream`: texts, samples, stops; what is no longer wanted is not generated."""

from typing import Any

import pytest

from equilm.decode.engine import Engine
from equilm.decode.generate import generate, stream
from equilm.decode.request import Request, Sampling
from equilm.decode.text import Bytes
from equilm.nn.model import LanguageModel
from tests.decode.plain import plain
from tests.nn.build import equilibrium_model, language_model

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return equilibrium_model("mamba2").float().eval()


@pytest.fixture(scope="module")
def writer() -> LanguageModel:
    return language_model("mamba2", vocab_size=256).float().eval()


def test_an_answer_has_text_steps_and_status(model: LanguageModel) -> None:
    (answer,) = generate(model, [[3, 1, 4]], max_tokens=5, sampling=GREEDY, window=1)
    request = Request(prompt=(3, 1, 4), max_tokens=5, sampling=GREEDY)
    assert list(answer.tokens) == plain(model, request).tokens
    assert answer.text == "".join(f" {token.id}" for token in answer.tokens)
    assert answer.finish_reason == "length"
    assert all(token.steps > 1 and token.status == "converged" for token in answer.tokens)


def test_ragged_prompts_get_what_they_get_alone(model: LanguageModel) -> None:
    prompts = [[1], [2, 3, 4, 5, 6, 7, 8, 9], [10, 0, 1], [5] * 20]
    together = generate(model, prompts, max_tokens=6, sampling=GREEDY, slots=3)
    assert together == [
        generate(model, [prompt], max_tokens=6, sampling=GREEDY)[0] for prompt in prompts
    ]


def test_samples_have_seeds_of_their_own(writer: LanguageModel) -> None:
    sampling = Sampling(seed=5)
    answers = generate(
        writer, ["ab", "c"], tokenizer=Bytes(), sampling=sampling, samples=3, max_tokens=8
    )
    assert len({answer.tokens for answer in answers}) == 6
    for place, prompt in enumerate(["ab", "c"]):
        for sample in range(3):
            one = Sampling(seed=5 + sample)
            alone = generate(writer, [prompt], tokenizer=Bytes(), sampling=one, max_tokens=8)
            assert [token.id for token in alone[0].tokens] == [
                token.id for token in answers[3 * place + sample].tokens
            ]


def test_a_stop_string_ends_an_answer_and_frees_its_slot(writer: LanguageModel) -> None:
    whole = generate(writer, ["ab"], tokenizer=Bytes(), max_tokens=40)[0].text
    stop = next(whole[at : at + 2] for at in range(3, 40) if whole[at : at + 2].isprintable())
    request = Request(prompt=tuple(b"ab"), max_tokens=40)
    engine = Engine(writer, slots=1)
    pieces = list(stream(engine, [request, request], tokenizer=Bytes(), stop=[stop]))
    for place in (0, 1):
        told = "".join(piece.text for piece in pieces if piece.place == place)
        assert told == whole[: whole.index(stop)]
        (reason,) = [piece.finish_reason for piece in pieces if piece.place == place][-1:]
        assert reason == "stop"
    assert not engine.busy and engine.counts.tokens < 80


def test_a_stop_token_ends_an_answer(writer: LanguageModel) -> None:
    whole = generate(writer, ["ab"], tokenizer=Bytes(), max_tokens=20)[0].tokens
    last = whole[7].id
    stopped = generate(writer, ["ab"], tokenizer=Bytes(), max_tokens=20, stop_tokens=[last])[0]
    first = next(at for at, token in enumerate(whole) if token.id == last)
    assert stopped.tokens == whole[:first] and stopped.finish_reason == "stop"


def test_a_stream_that_is_closed_leaves_nothing_behind(model: LanguageModel) -> None:
    engine = Engine(model, slots=2)
    requests = [Request(prompt=(1, 2, 3), max_tokens=50)] * 3
    pieces = stream(engine, requests)
    next(pieces)
    pieces.close()
    assert not engine.busy


def test_all_requests_are_good_or_none_is_answered(model: LanguageModel) -> None:
    engine = Engine(model)
    with pytest.raises(ValueError, match="prompt: expected ids"):
        next(stream(engine, [Request(prompt=(1,)), Request(prompt=(99,))]))
    assert not engine.busy


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompts": [[]]}, "prompt: expected at least one token, got none"),
        ({"samples": 0}, "samples: expected an integer >= 1, got 0"),
        ({"max_tokens": 0}, "max_tokens: expected an integer >= 1, got 0"),
        ({"prompts": ["to be"]}, "prompt: expected token ids such as"),
        ({"window": 0}, "window: expected an integer >= 1, got 0"),
        ({"stop": [""]}, "stop: expected strings of at least one character"),
    ],
    ids=str,
)
def test_mistakes(model: LanguageModel, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        generate(model, **{"prompts": [[1]], **settings})


def test_no_prompts_no_answers(model: LanguageModel) -> None:
    assert generate(model, []) == []


def test_one_prompt_instead_of_a_list_is_refused(model: LanguageModel) -> None:
    for prompts in ("31", [3, 1, 4]):
        with pytest.raises(ValueError, match="prompts: expected a list of prompts, got one"):
            generate(model, prompts)  # type: ignore[arg-type]


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"tokenizer: expected one of at most 11 ids.* got one of"):
        generate(model, ["a"], tokenizer=Bytes())
