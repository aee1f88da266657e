"""Tasks that read recordings, genomes and pictures from a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from equilm.tasks.dna import BASES, DNA, DNAConfig
from equilm.tasks.examples import shuffled
from equilm.tasks.pixels import Pixels, PixelsConfig
from equilm.tasks.speech import LEVELS, Speech, SpeechConfig, decode, encode
from equilm.tasks.task import IGNORE, Batch, Task
from tests.tasks.folders import genomes, pictures, recordings


def batch_of(task: Task, **position: Any) -> Batch:
    where = {"split": "train", "length": 100, "batch_size": 6, "seed": 0, "index": 0}
    return task.batch(**{**where, **position})


@pytest.fixture(params=["pixels", "dna", "species", "speech"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    if request.param == "pixels":
        return Pixels(PixelsConfig(folder=pictures(tmp_path)))
    if request.param == "speech":
        return Speech(SpeechConfig(folder=recordings(tmp_path)))
    asked: Any = "next" if request.param == "dna" else "species"
    return DNA(DNAConfig(folder=genomes(tmp_path), asked=asked))


def test_a_row_is_a_function_of_its_number(task: Task) -> None:
    assert task.by_row
    whole = batch_of(task, batch_size=6, index=2)
    for row in range(6):
        one = batch_of(task, batch_size=1, index=12 + row)
        assert torch.equal(one.tokens_BT[0], whole.tokens_BT[row])
        assert torch.equal(one.targets_BT[0], whole.targets_BT[row])


def test_every_example_once_in_a_pass() -> None:
    at: Any = {"seed": 3, "split": "train"}
    chosen, epochs = shuffled(7, index=1, batch_size=14, **at)
    assert epochs.tolist() == [2] * 7 + [3] * 7
    assert sorted(chosen[:7]) == sorted(chosen[7:]) == list(range(7))
    assert chosen[:7].tolist() != chosen[7:].tolist()
    (other, _) = shuffled(7, index=1, batch_size=14, seed=3, split="test")
    assert other.tolist() != chosen.tolist()


def test_a_picture_is_read_pixel_by_pixel(tmp_path: Path) -> None:
    task = Pixels(PixelsConfig(folder=pictures(tmp_path)))
    images = torch.from_numpy(np.load(tmp_path / "test_images_uint8.npy")).long()
    batch = batch_of(task, split="test", length=150, batch_size=24)
    seen = sorted(batch.tokens_BT[:, :144].tolist())
    assert seen == sorted(images.flatten(1).tolist())
    assert not batch.tokens_BT[:, 144:].any()
    for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
        number = (images.flatten(1) == tokens[:144]).all(1).int().argmax()
        assert targets[143] == number % 10
        assert (targets != IGNORE).sum() == 1


def test_a_short_row_shrinks_the_picture(tmp_path: Path) -> None:
    task = Pixels(PixelsConfig(folder=pictures(tmp_path)))
    batch = batch_of(task, split="test", length=40, batch_size=24)
    whole = batch_of(task, split="test", length=144, batch_size=24)
    small = F.avg_pool2d(whole.tokens_BT.view(24, 12, 12).float(), 2).round().long()
    assert torch.equal(batch.tokens_BT[:, :36], small.flatten(1))
    assert torch.equal(batch.targets_BT[:, 35], whole.targets_BT[:, 143])


def test_one_permutation_for_all(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    by_row = Pixels(PixelsConfig(folder=folder))
    permuted = Pixels(PixelsConfig(folder=folder, order="permuted"))
    orders = []
    for seed in (0, 1):
        rows_BT, mixed_BT = (
            batch_of(task, length=144, batch_size=40, seed=seed).tokens_BT
            for task in (by_row, permuted)
        )
        columns = rows_BT.T.tolist()
        orders.append([columns.index(column) for column in mixed_BT.T.tolist()])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(144)) != orders[0]


def test_valid_pictures_are_not_trained_on(tmp_path: Path) -> None:
    task = Pixels(PixelsConfig(folder=pictures(tmp_path)))
    train = {tuple(row) for row in batch_of(task, length=144, batch_size=44).tokens_BT.tolist()}
    valid = batch_of(task, split="valid", length=144, batch_size=4).tokens_BT.tolist()
    assert (len(train), len({tuple(row) for row in valid})) == (44, 4)
    assert not train & {tuple(row) for row in valid}


def test_windows_of_bases_lie_in_one_stretch(tmp_path: Path) -> None:
    task = DNA(DNAConfig(folder=genomes(tmp_path)))
    random = np.random.default_rng(0)
    told = "".join("ACGT"[base] for base in random.integers(4, size=6000))
    contigs = [told[:3000], f"{told[3000:4500]}NN{told[:500]}", told[4500:]]
    batch = batch_of(task, batch_size=64)
    for tokens, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        text = "".join(BASES[token] for token in tokens)
        contig = next(one for one in contigs if text in one)
        after = contig[contig.index(text) + 1 :][:100]
        assert targets == [IGNORE if base == "N" else BASES.index(base) for base in after]


def test_held_out_splits_do_not_meet(tmp_path: Path) -> None:
    task = DNA(DNAConfig(folder=genomes(tmp_path), species=("mouse",)))
    pieces = task._pieces
    assert [piece.base_N.size for piece in pieces["valid"]] == [1575]
    # 3,502 bases in contigs of 2,002 and 1,500: the last 45% begin in the first of them.
    assert [piece.base_N.size for piece in pieces["test"]] == [76, 1500]
    assert {piece.species for split in pieces.values() for piece in split} == {"mouse"}


def test_the_species_is_asked_at_the_end(tmp_path: Path) -> None:
    task = DNA(DNAConfig(folder=genomes(tmp_path), asked="species"))
    assert task.vocab_size == 7
    batch = batch_of(task, batch_size=60)
    bases = batch_of(DNA(DNAConfig(folder=tmp_path, species=("human",))), batch_size=60)
    human = {tuple(row) for row in bases.tokens_BT.tolist()}
    assert (batch.targets_BT[:, :-1] == IGNORE).all()
    asked = {5: "human", 6: "mouse"}
    told = [asked[answer] for answer in batch.targets_BT[:, -1].tolist()]
    assert {"human", "mouse"} == set(told)
    for row, species in zip(batch.tokens_BT.tolist(), told, strict=True):
        assert species == "human" or tuple(row) not in human


def test_what_dna_refuses(tmp_path: Path) -> None:
    folder = genomes(tmp_path)
    with pytest.raises(ValueError, match="species: expected some of human, mouse; got 'cow'"):
        DNA(DNAConfig(folder=folder, species=("cow",)))
    with pytest.raises(ValueError, match="length: expected at most 2999 bases in train, got 3000"):
        batch_of(DNA(DNAConfig(folder=folder)), length=3000)
    with pytest.raises(ValueError, match=r"folder: expected x.fa or x.fa.xz in .*, got neither"):
        DNA(DNAConfig(folder=folder, train="x.fa"))


def test_samples_follow_the_name_of_the_digit(tmp_path: Path) -> None:
    task = Speech(SpeechConfig(folder=recordings(tmp_path)))
    samples = np.fromfile(tmp_path / "fsdd_8khz_mono_int16le.raw", dtype="<i2") / 32768
    levels = encode(torch.from_numpy(samples)).tolist()
    batch = batch_of(task, split="test", length=250, batch_size=12)
    places = set()
    for tokens, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        size = sum(target != IGNORE for target in targets)
        number = (size - 90) // 3
        offset = sum(90 + 3 * before for before in range(number))
        assert targets == levels[offset : offset + size] + [IGNORE] * (250 - size)
        assert tokens[0] == LEVELS + number % 2
        assert tokens[1 : size + 1] == targets[:size]
        places.add(number)
    # Takes 0 to 2 of both digits, each twice.
    assert places == {0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23}


def test_mu_law_keeps_levels_and_small_sounds() -> None:
    levels = torch.arange(256)
    assert torch.equal(encode(decode(levels)), levels)
    wave = torch.linspace(-1, 1, 4001)
    error = (decode(encode(wave)) - wave).abs()
    assert error.max() < 0.022
    assert error[wave.abs() < 0.01].max() < 0.0003
    assert encode(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
