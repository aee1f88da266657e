from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from equilm.tasks.catbabi import CatbAbI, CatbAbIConfig
from equilm.tasks.entities import Entities, EntitiesConfig
from equilm.tasks.shuffled_objects import (
    ShuffledObjects,
    ShuffledObjectsConfig,
    read_problems,
    redrawn,
    solved,
)
from equilm.tasks.stories import END, Story, StoryTask, split_words
from equilm.tasks.task import IGNORE
from tests.tasks.folders import PROBLEM, babi, boxes, shuffled


class Numbers(StoryTask):
    """Stories of sizes given, END included, each answered by its last word."""

    def __init__(self, sizes: list[int], mode: str = "question") -> None:
        stories = [
            Story([f"{number}.{place}" for place in range(size - 1)], [size - 2], number)
            for number, size in enumerate(sizes)
        ]
        super().__init__(
            "numbers",
            {"train": stories, "valid": [], "test": stories},
            mode="language" if mode == "language" else "question",
            label="story",
        )

    def describe(self, label: int) -> str:
        return str(label)


def told(task: StoryTask, row: int = 0, **position: int) -> list[tuple[str, str]]:
    """Words of a row, and what each is asked for."""
    where = {"length": 200, "batch_size": 1, "seed": 0, "index": 0, **position}
    batch = task.batch(split="train", **where)
    asked = ["" if one == IGNORE else task.words[one] for one in batch.targets_BT[row].tolist()]
    return list(zip((task.words[one] for one in batch.tokens_BT[row].tolist()), asked, strict=True))


@pytest.mark.parametrize("length", [4, 7, 10, 33])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_question_is_asked_once_in_a_pass(length: int, batch_size: int) -> None:
    sizes = [3, 9, 4, 4, 6, 3, 5, 7, 3, 3]
    task = Numbers(sizes)
    rows = task.num_rows(split="train", length=length, seed=1)
    asked = []
    for number in range(rows):
        at = {"length": length, "batch_size": 1, "seed": 1, "index": number}
        asked += [answer for _, answer in told(task, **at) if answer]
    fitting = [f"{story}.{size - 2}" for story, size in enumerate(sizes) if size <= length]
    assert sorted(asked)[: len(fitting)] == sorted(set(asked))[: len(fitting)]
    assert set(fitting) <= set(asked)
    # The same rows, several in a batch.
    whole = task.batch(split="train", length=length, batch_size=batch_size, seed=1, index=1)
    for row in range(batch_size):
        one = task.batch(split="train", length=length, batch_size=1, seed=1, index=batch_size + row)
        assert torch.equal(whole.tokens_BT[row], one.tokens_BT[0])
        assert torch.equal(whole.targets_BT[row], one.targets_BT[0])


def test_a_row_begins_with_a_story_and_asks_of_whole_ones_alone() -> None:
    task = Numbers([5] * 6)
    for index in range(12):
        row = told(task, length=12, index=index)
        assert row[0][0].endswith(".0")
        assert [place for place, (_, answer) in enumerate(row) if answer] in ([2, 7], [2])
        for place, (_, answer) in enumerate(row):
            assert not answer or row[place + 1][0] == answer


def test_a_story_longer_than_a_row_is_asked_as_far_as_it_goes() -> None:
    task = Numbers([9], mode="language")
    row = told(task, length=6)
    assert [answer for _, answer in row] == [f"0.{place}" for place in range(1, 7)]


def test_passes_differ_and_hold_the_same_stories() -> None:
    task = Numbers([4] * 30)
    rows = task.num_rows(split="train", length=8, seed=0)
    passes = [
        task.batch(split="train", length=8, batch_size=rows, seed=0, index=index).tokens_BT
        for index in range(2)
    ]
    assert not torch.equal(*passes)
    assert torch.equal(*(one.flatten().sort().values for one in passes))


def test_labels_lie_where_their_stories_do() -> None:
    task = Numbers([5, 4, 6])
    where: dict[str, Any] = {"split": "train", "length": 15, "batch_size": 1, "seed": 3, "index": 0}
    words = [task.words[one] for one in task.batch(**where).tokens_BT[0].tolist()]
    labels, positions = (one[0].tolist() for one in task.labels(**where))
    for word, label, position in zip(words, labels, positions, strict=True):
        if word != END:
            assert word == f"{label}.{position - 1}"


def test_a_split_that_is_not_there_is_named() -> None:
    task = Numbers([4])
    with pytest.raises(ValueError, match="split: expected one of train, test; got 'valid'"):
        task.batch(split="valid", length=4, batch_size=1, seed=0, index=0)


def test_words_are_split_as_published() -> None:
    assert split_words("Where is Mary?", ".?") == ["where", "is", "mary", "?"]
    assert split_words("John moved. ", ".?") == ["john", "moved", "."]


def test_babi_asks_behind_the_question_mark(tmp_path: Path) -> None:
    task = CatbAbI(CatbAbIConfig(folder=babi(tmp_path), tasks=(1, 19)))
    assert task.name == "catbabi question"
    assert task.describe(19) == "qa19"
    row = told(task, length=71)
    asked = [(word, answer) for word, answer in row if answer]
    assert {word for word, _ in asked} == {"?"}
    assert sorted(answer for _, answer in asked) == ["bathroom", "garden", "office", "s,w"]
    text = " ".join(word for word, _ in row)
    assert "where is mary ? bathroom mary went back to the office ." in text
    assert text.count(END) == 3


def test_babi_as_a_language_asks_for_every_word_of_a_story(tmp_path: Path) -> None:
    config = CatbAbIConfig(folder=babi(tmp_path), tasks=(1, 19), mode="language")
    row = told(CatbAbI(config), length=71)
    for place, (word, answer) in enumerate(row[:-1]):
        assert answer == ("" if word == END else row[place + 1][0])


def test_boxes_ask_for_their_whole_content(tmp_path: Path) -> None:
    task = Entities(EntitiesConfig(folder=boxes(tmp_path)))
    where: dict[str, Any] = {"split": "train", "length": 40, "batch_size": 6, "seed": 0, "index": 0}
    batch, labels = task.batch(**where), task.labels(**where)
    found = {}
    for row in range(6):
        words = [task.words[one] for one in batch.tokens_BT[row].tolist()]
        end = words.index(END)
        answer = batch.targets_BT[row, :end]
        told = [task.words[one] for one in answer[answer != IGNORE].tolist()]
        begins = int((answer != IGNORE).nonzero()[0])
        found[" ".join(words[: begins + 1])] = (" ".join(told), int(labels.label_BT[row, begins]))
    start = "box 0 contains the ball and the fig , box 1 is empty ."
    moved = f"{start} move the fig from box 0 to box 1 ."
    removed = f"{moved} remove the ball from box 0 ."
    assert found == {
        f"{start} box 0": ("contains the ball and the fig <eos>", 0),
        f"{start} box 1": ("is empty <eos>", 0),
        f"{moved} box 0": ("contains the ball <eos>", 1),
        f"{moved} box 1": ("contains the fig <eos>", 1),
        f"{removed} box 0": ("is empty <eos>", 2),
        f"{removed} box 1": ("contains the fig <eos>", 1),
    }


def test_shuffled_objects_are_answered_by_doing_what_is_said(tmp_path: Path) -> None:
    folder = shuffled(tmp_path)
    (problem,) = read_problems(folder / "tracking_shuffled_objects_three_objects.json")
    assert solved(problem.text) == problem.answer == "(B)"
    task = ShuffledObjects(ShuffledObjectsConfig(folder=folder, objects=(3,), copies=5))
    batch = task.batch(split="test", length=120, batch_size=1, seed=0, index=0)
    asked = batch.targets_BT[batch.targets_BT != IGNORE]
    assert [task.words[one] for one in asked.tolist()] == ["(b)"]
    assert "moby" in task.words


def test_problems_drawn_anew_differ_in_what_is_to_be_tracked() -> None:
    random = Random(0)
    drawn = [redrawn(PROBLEM, random) for _ in range(60)]
    assert len({problem.text for problem in drawn}) > 40
    assert {problem.answer for problem in drawn} == {"(A)", "(B)", "(C)"}
    for problem in drawn:
        assert problem.text.startswith("Alice, Bob, and Claire are friends who trade books.")
        assert problem.text.count("Moby Dick") == problem.text.count("Lolita") == 2
        first = problem.text.split("Alice gets ")[1].split(",")[0]
        assert f"(A) {first}\n" in problem.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CatbAbIConfig(folder=Path("nowhere")), "folder: expected qa1_train.txt of bAbI v1.2 in"),
        (EntitiesConfig(folder=Path("nowhere")), "folder: expected train.jsonl or train.jsonl.xz"),
        (ShuffledObjectsConfig(folder=Path("nowhere")), "folder: expected tracking_shuffled_obj"),
    ],
)
def test_a_missing_file_is_named(config: object, message: str) -> None:
    from equilm.tasks import build_task

    with pytest.raises(ValueError, match=message):
        build_task(config)  # type: ignore[arg-type]


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"tasks: expected numbers in 1..20, got \(0,\)"):
        CatbAbIConfig(folder=Path(), tasks=(0,))
    with pytest.raises(ValueError, match="objects: expected numbers among 3, 5, 7"):
        ShuffledObjectsConfig(folder=Path(), objects=(4,))
    with pytest.raises(ValueError, match="copies: expected an integer >= 1, got 0"):
        ShuffledObjectsConfig(folder=Path(), copies=0)
