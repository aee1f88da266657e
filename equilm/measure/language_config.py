"""What to measure a language model on: a plain value. Read `language.py` next."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """What to measure a language model on, beside the settings that all evaluations share.

    Args:
        text: Files or folders of text, as `equilm data prepare` reads them (.txt, .jsonl,
            .parquet, packed or not), or what it wrote, of which the split that is evaluated.
        sweeps: Evaluations a token to try on the shortest of the lengths, instead of solving; one
            by one and all at once, where these windows are.
        harness: Tasks of lm-evaluation-harness, separated by commas.
        include: A folder of task files (.yaml) of the harness; then no others are known, and
            nothing is fetched.
        limit: Items of each task, the first ones; all if left out.
        tokenizer: A folder, "bytes", or "ids", where the text of a token is its number. If left
            out: the model's own, or "ids" if it has none.
    """

    text: tuple[Path, ...] = ()
    sweeps: tuple[int, ...] = ()
    harness: str = ""
    include: Path | None = None
    limit: int | None = None
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.sweeps and min(self.sweeps) < 1:
            raise ValueError(f"sweeps: expected integers >= 1, got {self.sweeps}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected an integer >= 1, got {self.limit}")
        for name, needed in (("sweeps", "text"), ("include", "harness"), ("limit", "harness")):
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"{name}: expected --{needed} with it")
