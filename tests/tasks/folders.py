"""Small folders in the formats of the tasks that read one."""

import json
import lzma
from pathlib import Path
from typing import Any

from equilm.tasks import TASKS, TaskConfig

BABI = {
    1: """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary?\tbathroom\t1
4 Mary went back to the Office.
5 Where is Mary?\toffice\t4
1 John moved to the garden.
2 Where is John?\tgarden\t1
""",
    19: """1 The office is east of the hallway.
2 The kitchen is north of the office.
3 How do you go from the kitchen to the hallway?\ts,w\t2 1
""",
}
SAMPLE = {
    "init": "Box 0 contains the ball and the fig, Box 1 is empty.",
    "ops": ["Move the fig from Box 0 to Box 1.", "Remove the ball from Box 0."],
    "state": [
        ["contains the ball and the fig", "is empty"],
        ["contains the ball", "contains the fig"],
        ["is empty", "contains the fig"],
    ],
    "numops": [[0, 0], [1, 1], [2, 1]],
}
PROBLEM = (
    "Alice, Bob, and Claire are friends who trade books. At the start, they each buy one: Alice "
    "gets Ulysses, Bob gets Moby Dick, and Claire gets Lolita.\nAs time goes by, they start "
    "trading. First, Claire and Bob swap books. Then, Bob and Alice swap books. Finally, Claire "
    "and Bob swap books. At the end of the semester, Bob has\nOptions:\n(A) Ulysses\n(B) Moby "
    "Dick\n(C) Lolita"
)


def babi(folder: Path) -> Path:
    """Write both tasks, their stories in another order in each split."""
    for split in ("train", "valid", "test"):
        for number, text in BABI.items():
            (folder / f"qa{number}_{split}.txt").write_text(text, encoding="utf-8")
    return folder


def boxes(folder: Path) -> Path:
    """Write a sample a split, one of them packed."""
    line = (json.dumps(SAMPLE) + "\n").encode()
    (folder / "train.jsonl").write_bytes(line)
    (folder / "dev.jsonl.xz").write_bytes(lzma.compress(line))
    (folder / "test.jsonl").write_bytes(line * 2)
    return folder


def shuffled(folder: Path) -> Path:
    """Write a problem of three objects."""
    content = {"examples": [{"input": PROBLEM, "target": "(B)"}]}
    path = folder / "tracking_shuffled_objects_three_objects.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def settings_of(kind: str, folder: Path) -> TaskConfig:
    """The settings of a task of the table, with a folder of its own where it reads one."""
    of_folder: dict[str, dict[str, Any]] = {
        "catbabi": {"tasks": (1, 19)},
        "entities": {},
        "shuffled_objects": {"objects": (3,)},
    }
    writers = {"catbabi": babi, "entities": boxes, "shuffled_objects": shuffled}
    config_class, _ = TASKS[kind]
    given = {"folder": writers[kind](folder), **of_folder[kind]} if kind in writers else {}
    config: TaskConfig = config_class(**given)
    return config
