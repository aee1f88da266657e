"""The face computes what our model computes: padding, state, loss, embeddings, dials."""

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hf.faces import IMPLICIT, face, ours, padded, ragged
from tests.nn.build import VOCAB
from tests.tolerance import assert_close

transformers = pytest.importorskip("transformers")


def tokens(rows: int = 3, length: int = 9) -> Tensor:
    return torch.cat(ragged(*[length] * rows))


@torch.no_grad()
def test_logits_are_those_of_the_model_behind(kind: str) -> None:
    assert torch.equal(face(kind)(tokens()).logits, ours(kind)(tokens())[0])


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False])
def test_a_padded_row_gives_what_it_gives_alone(kind: str, left: bool) -> None:
    rows = ragged(4, 9, 1)
    tokens_BT, mask_BT = padded(rows, left=left)
    out = face(kind)(tokens_BT, attention_mask=mask_BT)
    for row, logits_TV, mask_T in zip(rows, out.logits, mask_BT.bool(), strict=True):
        assert_close("equilibrium", logits_TV[mask_T], ours(kind)(row)[0][0])


@torch.no_grad()
def test_padding_within_a_row_and_a_row_of_nothing_else(kind: str) -> None:
    (row,) = ragged(5)
    tokens_BT = torch.zeros(2, 8, dtype=torch.int64)
    mask_BT = torch.zeros_like(tokens_BT)
    places = [1, 2, 4, 6, 7]
    tokens_BT[0, places], mask_BT[0, places] = row[0], 1
    logits_BTV = face(kind)(tokens_BT, attention_mask=mask_BT).logits
    assert_close("equilibrium", logits_BTV[0, places], ours(kind)(row)[0][0])
    assert torch.isfinite(logits_BTV).all()


@torch.no_grad()
def test_rows_padded_on_the_right_need_no_mask(kind: str) -> None:
    rows = ragged(4, 9)
    logits_BTV = face(kind)(padded(rows, left=False)[0]).logits
    for row, logits_TV in zip(rows, logits_BTV, strict=True):
        assert_close("equilibrium", logits_TV[: row.shape[1]], ours(kind)(row)[0][0])


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False])
def test_the_state_kept_is_that_after_the_last_token_of_each_row(kind: str, left: bool) -> None:
    prompts, tails = ragged(4, 9, 1), ragged(2, 2, 2, seed=1)
    tokens_BT, mask_BT = padded(prompts, left=left)
    model = face(kind)
    cache = model(tokens_BT, attention_mask=mask_BT).past_key_values
    assert cache.get_seq_length() == 9
    for column in range(2):
        mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        out = model(
            torch.cat(tails)[:, column : column + 1], attention_mask=mask_BT, past_key_values=cache
        )
        assert out.past_key_values is cache
        for index, (prompt, tail) in enumerate(zip(prompts, tails, strict=True)):
            whole = torch.cat([prompt, tail[:, : column + 1]], dim=1)
            assert_close("equilibrium", out.logits[index, -1], ours(kind)(whole)[0][0, -1])


@torch.no_grad()
def test_a_cache_grows_and_may_be_branched_and_reset(kind: str) -> None:
    tokens_BT = tokens(2, 12)
    expected_BTV = ours(kind)(tokens_BT)[0]
    model = face(kind)
    cache = model(tokens_BT[:, :5]).past_key_values
    for start, end in ((5, 6), (6, 10)):
        branch = copy.deepcopy(cache)
        model(torch.flip(tokens_BT, [0])[:, start:end], past_key_values=branch)
        logits_BTV = model(tokens_BT[:, start:end], past_key_values=cache).logits
        assert_close("equilibrium", logits_BTV, expected_BTV[:, start:end])
    before = model(tokens_BT[:, 10:], past_key_values=cache, use_cache=False)
    assert before.past_key_values is None and cache.get_seq_length() == 10
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache.is_initialized
    assert_close("equilibrium", model(tokens_BT, past_key_values=cache).logits, expected_BTV)


@torch.no_grad()
def test_rows_of_a_cache_are_chosen_and_repeated(kind: str) -> None:
    tokens_BT = tokens(3, 6)
    expected_B1V = ours(kind)(tokens_BT)[0][:, -1:]
    model = face(kind)

    def last(change: Any, rows: list[int]) -> None:
        cache = model(tokens_BT[:, :5]).past_key_values
        change(cache)
        logits_B1V = model(tokens_BT[rows, 5:], past_key_values=cache).logits
        assert_close("equilibrium", logits_B1V, expected_B1V[rows])

    last(lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0])
    last(lambda cache: cache.batch_select_indices(torch.tensor([1])), [1])
    last(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2])


def test_the_loss_asks_each_position_for_the_next_token(kind: str) -> None:
    model, labels_BT = face(kind), tokens().clone()
    labels_BT[0, :4] = -100
    out = model(tokens(), labels=labels_BT)
    logits_RV, asked_R = out.logits[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits_RV, asked_R)
    assert_close("elementwise", out.loss, expected)
    scaled = model(tokens(), labels=labels_BT, num_items_in_batch=torch.tensor(7)).loss
    assert_close("elementwise", scaled, expected * int((asked_R != -100).sum()) / 7)


def test_labels_may_be_moved_already(kind: str) -> None:
    model, labels_BT = face(kind), tokens().roll(-1, dims=1)
    labels_BT[:, -1] = -100
    got = model(tokens(), labels=tokens(), shift_labels=labels_BT).loss
    assert_close("elementwise", got, model(tokens(), labels=tokens()).loss)
    with pytest.raises(TypeError, match="shift_lables"):
        model(tokens(), shift_lables=labels_BT)


def test_every_parameter_learns(kind: str) -> None:
    model = face(kind).train()
    out = model(tokens(), labels=tokens())
    assert out.past_key_values is None
    out.loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@torch.no_grad()
def test_logits_of_some_positions(kind: str) -> None:
    model = face(kind)
    whole = model(tokens()).logits
    assert_close("elementwise", model(tokens(), logits_to_keep=2).logits, whole[:, -2:])
    chosen = torch.tensor([0, 5])
    assert_close("elementwise", model(tokens(), logits_to_keep=chosen).logits, whole[:, chosen])


@torch.no_grad()
def test_embeddings_may_stand_for_tokens(kind: str) -> None:
    model = face(kind)
    embedded_BTD = model.get_input_embeddings()(tokens())
    out = model(inputs_embeds=embedded_BTD, output_hidden_states=True)
    assert torch.equal(out.logits, model(tokens()).logits)
    first, last = out.hidden_states
    assert torch.equal(first, embedded_BTD)
    assert torch.equal(model.lm_head(last), out.logits)
    for given in ({}, {"input_ids": tokens(), "inputs_embeds": embedded_BTD}):
        with pytest.raises(ValueError, match="input_ids: expected exactly one"):
            model(**given)


@torch.no_grad()
def test_a_tuple_holds_the_same(kind: str) -> None:
    model = face(kind)
    logits_BTV, cache = model(tokens(), return_dict=False)
    assert torch.equal(logits_BTV, model(tokens()).logits)
    assert cache.get_seq_length() == tokens().shape[1]
    assert model(tokens(), return_dict=False, use_cache=False)[0].shape[-1] == VOCAB


def test_masks_and_caches_of_others_are_refused(kind: str) -> None:
    model = face(kind)
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \(3, 9\), got \(3, 8\)"):
        model(tokens(), attention_mask=torch.ones(3, 8))
    with pytest.raises(ValueError, match="past_key_values: expected an EquilmCache, got Dynamic"):
        model(tokens(), past_key_values=transformers.DynamicCache())


@torch.no_grad()
@pytest.mark.parametrize("kind", IMPLICIT)
def test_dials_hold_for_one_call(kind: str) -> None:
    from equilm.nn.equilibrium import observed

    model = face(kind)
    solve = model.model.core.solve
    with observed(model) as found:
        loose = model(tokens(), tolerance=0.3, max_steps=7).logits
        model(tokens(), window=1)
        exact = model(tokens()).logits
    assert found[0].steps.max() <= 7 < found[2].steps.max()
    assert found[1].sweeps > found[2].sweeps
    assert model.model.core.solve is solve
    model.model.core.solve = replace(solve, window=1)
    with observed(model) as again:
        model(tokens(), window=0)
    assert again[0].sweeps == found[2].sweeps
    assert not torch.equal(loose, exact)


@pytest.mark.parametrize("dial", ["tolerance", "max_steps", "window"])
def test_dials_are_checked(kind: str, dial: str) -> None:
    expected = "expected" if kind in IMPLICIT else "expected none for an explicit model"
    with pytest.raises(ValueError, match=f"{dial}: {expected}"):
        face(kind)(tokens(), **{dial: -1})


@pytest.mark.parametrize(
    ("dial", "told"),
    [
        ({"window": -3}, "window: expected an integer >= 0, got -3"),
        ({"window": 1.5}, r"window: expected an integer >= 0, got 1\.5"),
        ({"max_steps": 0}, "max_steps: expected an integer >= 1, got 0"),
        ({"max_steps": True}, "max_steps: expected an integer >= 1, got True"),
        ({"tolerance": "a"}, "tolerance: expected a number >= 0, got 'a'"),
    ],
    ids=str,
)
def test_a_dial_that_is_none_is_one_line(dial: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        face("implicit-mamba2")(tokens(), **dial)


def test_rows_of_no_token_are_one_line(kind: str) -> None:
    with pytest.raises(ValueError, match="input_ids: expected one token or more a row, got none"):
        face(kind)(tokens()[:, :0])


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_a_token_out_of_range_is_one_line(kind: str, wrong: int) -> None:
    found = tokens()
    found[1, 2] = wrong
    told = rf"input_ids: expected ids in \[0, {VOCAB}\), got {wrong}"
    with pytest.raises(ValueError, match=told):
        face(kind)(found)
    with pytest.raises(ValueError, match=told):
        face(kind).generate(found, max_new_tokens=1)


@torch.no_grad()
@pytest.mark.parametrize("kind", IMPLICIT)
def test_tokens_that_are_not_solved_are_told_once(kind: str) -> None:
    model = face(kind)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(tokens())
        model.train()
        model(tokens(), max_steps=1)
        assert not told
        model.eval()
        model(tokens(), max_steps=1)
        model(tokens(), max_steps=1)
    (only,) = told
    assert "27 of 27 tokens were not solved in max_steps=1 evaluations" in str(only.message)
    assert only.filename == __file__
