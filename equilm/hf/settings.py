"""Another program's `config.json`, read key by key: what we cannot honour is refused.

Read `reference.py` and `transformers_folder.py` next.
"""

import math
from collections.abc import Mapping
from typing import Any

from equilm.config import suggest
from equilm.nn.folder import CheckpointError


class Settings:
    """A table of settings; a key that is null counts as absent.

    Args:
        table: What JSON gave; not changed.
        where: The file, and the way to the table in it; the start of each error.
    """

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._values = {key: value for key, value in table.items() if value is not None}
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, key: str, problem: str) -> CheckpointError:
        """Return an error about `key`, to raise."""
        return CheckpointError(f"{self.where}: {key}: {problem}")

    def get(self, key: str, default: object = None) -> Any:
        """Return what is there, unchecked."""
        self._read.add(key)
        return self._values.get(key, default)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer ≥ 0; without a default it must be there."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(key, f"expected an integer >= 0, got {_shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; without a default it must be there."""
        value = self.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise self.error(key, f"expected a finite number, got {_shown(value)}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"expected true or false, got {_shown(value)}")
        return value

    def table(self, key: str) -> "Settings":
        """Return the table under `key`, which must be there."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.error(key, f"expected a table, got {_shown(value)}")
        return Settings(value, f"{self.where}: {key}")

    def expect(self, key: str, *allowed: object, default: object = None) -> Any:
        """Return a value that must be one of `allowed`; absent, it is `default` or the first."""
        value = self.get(key, allowed[0] if default is None else default)
        if value not in allowed:
            wanted = " or ".join(map(_shown, allowed))
            raise self.error(key, f"expected {wanted}, got {_shown(value)}")
        return value

    def refuse(self, *keys: str) -> None:
        """Raise if one of `keys` is there: this package has nothing like it."""
        for key in keys:
            if key in self:
                raise self.error(key, f"expected none, got {_shown(self.get(key))}")

    def close(self, *harmless: str) -> None:
        """Raise if a key was neither read nor is `harmless`: it might change the model."""
        for key in self._values:
            if key not in self._read and key not in harmless:
                raise self.error(key, f"unknown key; {suggest(key, {*self._read, *harmless})}")


def _shown(value: object) -> str:
    words = {None: "none", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)
