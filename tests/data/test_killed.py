import subprocess
import sys
import time
from pathlib import Path

import pytest

from equilm.data import PrepareConfig, open_folder
from tests.data.corpus import finish, texts, write


@pytest.mark.slow
@pytest.mark.multi
def test_a_reader_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", texts(20_000))
    out = tmp_path / "o"
    words = [sys.executable, "-m", "equilm", "data", "prepare", source, "--out", str(out)]
    words += ["--workers", "2", "--piece-megabytes", "0.005"]
    reader = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list(out.glob("0*.json")) and reader.poll() is None:
        time.sleep(0.01)
    assert reader.poll() is None
    reader.kill()
    # It ends only once no process holds the pipe any more.
    reader.communicate(timeout=30)
    left = len(list(out.glob("0*.json")))
    config = PrepareConfig(train=(source,), out=out, piece_megabytes=0.005)
    last = finish(config)
    assert left <= last.kept < last.pieces
    assert open_folder(out).splits["train"]["documents"] == 20_000
    open_folder(out).check()
    assert not list(out.glob("*.tmp"))
