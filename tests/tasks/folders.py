"""Small folders in the formats of the tasks that read one."""

import io
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

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


def pictures(folder: Path) -> Path:
    """Write 48 and 24 pictures of 12 x 12 random pixels, the training ones packed."""
    random = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 24)):
        images = random.integers(256, size=(count, 12, 12), dtype=np.uint8)
        for name, array in (("images", images), ("labels", np.arange(count, dtype=np.uint8) % 10)):
            file = io.BytesIO()
            np.save(file, array)
            packed = split == "train"
            content = lzma.compress(file.getvalue()) if packed else file.getvalue()
            (folder / f"{split}_{name}_uint8.npy{'.xz' if packed else ''}").write_bytes(content)
    return folder


def genomes(folder: Path) -> Path:
    """Write two species in two files: of one contig, and of two with unknown bases between."""
    random = np.random.default_rng(0)
    for name in ("ENm001_10species.fa", "ENm002_10species.fa"):
        bases = "".join("ACGT"[base] for base in random.integers(4, size=6000))
        told = [("human|x", bases[:3000]), ("mouse|1", f"{bases[3000:4500]}NN{bases[:500]}")]
        told += [("mouse|2", bases[4500:].lower())]
        text = "".join(f">{header}\n{body}\n" for header, body in told)
        (folder / f"{name}.xz").write_bytes(lzma.compress(text.encode()))
    return folder


def recordings(folder: Path) -> Path:
    """Write noise as 36 recordings of 90 to 195 samples: two digits, nine takes."""
    random = np.random.default_rng(0)
    lines, offset = ["file\toffset_samples\tnum_samples\tdigit\tspeaker\ttake\tsplit"], 0
    for number in range(36):
        digit, take, size = number % 2, number // 2 % 9, 90 + 3 * number
        split = "test" if take < 3 else "train"
        lines.append(f"{number}.wav\t{offset}\t{size}\t{digit}\tann\t{take}\t{split}")
        offset += size
    (folder / "index.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples = random.integers(-32768, 32768, size=offset).astype("<i2")
    (folder / "fsdd_8khz_mono_int16le.raw").write_bytes(samples.tobytes())
    return folder


def settings_of(kind: str, folder: Path) -> TaskConfig:
    """The settings of a task of the table, with a folder of its own where it reads one."""
    of_folder: dict[str, dict[str, Any]] = {
        "catbabi": {"tasks": (1, 19)},
        "entities": {},
        "shuffled_objects": {"objects": (3,)},
        "pixels": {},
        "dna": {},
        "speech": {},
    }
    writers = {"catbabi": babi, "entities": boxes, "shuffled_objects": shuffled}
    writers |= {"pixels": pictures, "dna": genomes, "speech": recordings}
    config_class, _ = TASKS[kind]
    given = {"folder": writers[kind](folder), **of_folder[kind]} if kind in writers else {}
    config: TaskConfig = config_class(**given)
    return config
