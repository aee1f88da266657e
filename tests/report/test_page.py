"""The page stands alone, says the finding first and shows nothing it has no Records for."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from equilm.record import Record
from equilm.report.page import headline, write_page

EVIL = "</title><script>alert('&')</script>"


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name.split(":")[-1] in _LINKS]

    def handle_data(self, data: str) -> None:
        self.text += data


_LINKS = {"href", "src", "srcset", "data", "action"}


@pytest.fixture(scope="module")
def page(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> str:
    told = [replace(r, commit="0a1b2c3", device="cpu") for r in records]
    extras = {"recipe": f"recipes/{EVIL}.toml"}
    folder = tmp_path_factory.mktemp("run") / "report"
    path = write_page(folder, told, title=EVIL, command=f"make demo {EVIL}", extras=extras)
    assert path == folder / "index.html"
    return path.read_text(encoding="utf-8")


def test_the_page_stands_alone(page: str) -> None:
    reader = Reader(page)
    assert {"script", "link", "iframe"}.isdisjoint(reader.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_everything_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert Reader(page).text.count(EVIL) == 4


def test_all_sections_are_there(page: str, records: list[Record]) -> None:
    reader = Reader(page)
    assert (reader.tags.count("svg"), reader.tags.count("table")) == (6, 3)
    for told in ("Figure 6.", "Table 3.", "0a1b2c3", "Do it again", headline(records)):
        assert told in reader.text


def test_the_page_follows_the_colour_scheme(page: str) -> None:
    drawings = page[page.index("<main>") :]
    assert "prefers-color-scheme:dark" in page
    assert "var(--line-0)" in drawings
    assert "#0068a8" not in drawings


def test_the_headline_is_the_finding(records: list[Record]) -> None:
    assert headline(records) == (
        "Trained on at most 20 tokens and tested on 2,000: implicit gets 100.0% of all tokens "
        "right, explicit 17.7%, guessing 16.7%."
    )


def test_the_headline_does_with_less(records: list[Record]) -> None:
    accuracy = [r for r in records if r.name == "accuracy" and r.split == "test"]
    assert headline(accuracy).startswith("Tested on 2,000: implicit gets 100.0%")
    two = accuracy + [replace(r, task="A5") for r in accuracy]
    assert "Tested on 2,000 of A5: " in headline(two)
    loss = [r for r in records if r.name == "loss"]
    assert re.fullmatch(
        r"Loss in training: implicit 0\.\d+ nats after step 650, explicit .*\.", headline(loss)
    )
    assert headline(r for r in records if r.name == "chance") == ""


def test_missing_sections_are_left_out(records: list[Record], tmp_path: Path) -> None:
    loss = [r for r in records if r.name == "loss"]
    reader = Reader(write_page(tmp_path, loss, title="Half").read_text(encoding="utf-8"))
    assert (reader.tags.count("svg"), reader.tags.count("table")) == (1, 0)
    assert "How it was trained" in reader.text
    for told in ("What comes out", "What it costs", "Inside the state map", "Do it again"):
        assert told not in reader.text


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one Record"):
        write_page(tmp_path, [], title="Nothing")
    assert not list(tmp_path.iterdir())
