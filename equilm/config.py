"""Recipes: strict frozen dataclasses read from TOML or JSON, and every mistake told in one line.

A settings class is a frozen stdlib dataclass beside the thing that it sets. Tables become these,
arrays tuples; one of several tables is picked by its `kind`. Read `record.py` next.
"""

import difflib
import json
import os
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A user's mistake in a setting: each line of the message is one problem, ready to print."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choice spelt most like `name`.

    Args:
        name: what was given.
        choices: the valid names; at least one.

    Returns:
        one of `choices`, however far it is.
    """
    return _closest(name, choices, cutoff=0.0)[0]


def suggest(name: str, choices: Iterable[str]) -> str:
    """The tail of an error message about a name that is not one of `choices`.

    Args:
        name: what was given.
        choices: the valid names.

    Returns:
        "did you mean `x`?" where one is close, else all of them.
    """
    valid = sorted(choices)
    for close in _closest(name, valid, cutoff=0.6):
        return f"did you mean `{close}`?"
    return "choose from: " + (", ".join(valid) or "nothing")


def decode(cls: type[T], data: Mapping[str, object], *, where: str = "recipe") -> T:
    """Build `cls` from plain tables, arrays and scalars, without guessing.

    An int may stand for a float; nothing else is converted. A table refines the default of its
    field: keys left out keep that default's values, and its `kind` where that is left out too.

    Args:
        cls: a frozen dataclass; its fields hold scalars, Literals, dataclasses, tuples of these,
            and unions, where dataclasses in one union differ by a field `kind: Literal[...]`.
        data: what a TOML or JSON file holds; not changed.
        where: where the data came from, the start of each line of an error.

    Returns:
        the instance; `decode(cls, encode(x)) == x`.

    Raises:
        ConfigError: a line for each unknown or missing key, wrong value, ValueError of a class.
    """
    reader = _Reader()
    instance = reader.value(cls, data, "", MISSING)
    if reader.problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in reader.problems))
    assert isinstance(instance, cls)
    return instance


def encode(value: object) -> Any:
    """Plain tables, arrays and scalars for a settings instance, as JSON holds them.

    Args:
        value: an instance of a settings class, or what a field of one holds.

    Returns:
        a dict for an instance; tuples become lists, paths strings, None stays None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in _keys(type(value))}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def load(cls: type[T], path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> T:
    """Read a file, apply the overrides in order, decode.

    Args:
        cls: the settings class, as for `decode`.
        path: a .toml or .json file; None stands for an empty one.
        overrides: "a.b.c=value" or "phases.1.steps=value". The value is read as TOML; `none` and
            `null` are None, and what is not TOML is a string.

    Returns:
        the instance.

    Raises:
        ConfigError: as `decode`; also a missing or broken file, an override with no place to go.
    """
    data = {} if path is None else _read(Path(path))
    defaults = {field.name: encode(_default(field)) for field in _keys(cls)}
    for override in overrides:
        _apply(data, override, defaults)
    sources = ([str(path)] if path is not None else []) + (["overrides"] if overrides else [])
    return decode(cls, data, where=" + ".join(sources) or "defaults")


def save(instance: object, path: str | os.PathLike[str]) -> None:
    """Write the resolved settings as JSON, whole or not at all.

    Args:
        instance: an instance of a settings class.
        path: the file, replaced if there; `load` reads it back to an equal instance.

    Raises:
        OSError: it could not be written; a file that was there is as it was.
    """
    unfinished = Path(f"{path}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(encode(instance), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class _Reader:
    """One pass over the data that notes every problem and stops at none."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def reject(self, path: str, problem: str) -> object:
        self.problems.append(f"{path}: {problem}" if path else problem)
        return None

    def value(self, kind: Any, value: object, path: str, default: object = MISSING) -> object:
        if is_dataclass(kind):
            return self.table(kind, value, path, default)
        if get_origin(kind) in (Union, UnionType):
            return self.union(kind, value, path, default)
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            return self.array(kind, value, path)
        return self.leaf(kind, value, path)

    def table(self, cls: Any, value: object, path: str, default: object) -> object:
        if not isinstance(value, Mapping):
            return self.reject(path, f"expected a table, got {reprlib.repr(value)}")
        num_before = len(self.problems)
        hints = get_type_hints(cls, include_extras=True)
        keys = {field.name: field for field in _keys(cls)}
        for key in value:
            if key not in keys:
                self.reject(_join(path, key), f"unknown key; {suggest(str(key), keys)}")
        given = {}
        for key, field in keys.items():
            known = getattr(default, key) if type(default) is cls else _default(field)
            if key in value:
                given[key] = self.value(hints[key], value[key], _join(path, key), known)
            elif known is MISSING:
                self.reject(_join(path, key), "missing, and it has no default")
            else:
                given[key] = known
        return self.build(cls, given, path) if len(self.problems) == num_before else None

    def build(self, cls: Any, given: Mapping[str, object], path: str) -> object:
        try:
            return cls(**given)
        except ValueError as error:
            name, _, problem = str(error).partition(": ")
            if name in given:
                return self.reject(_join(path, name), problem)
            return self.reject(path, str(error))

    def union(self, kind: Any, value: object, path: str, default: object) -> object:
        tables = [member for member in get_args(kind) if is_dataclass(member)]
        arrays = [member for member in get_args(kind) if get_origin(member) is tuple]
        if isinstance(value, list | tuple) and arrays:
            return self.array(arrays[0], value, path)
        if not isinstance(value, Mapping) or not tables:
            return self.leaf(kind, value, path)
        if len(tables) == 1:
            return self.table(tables[0], value, path, default)
        tags = {tag: table for table in tables for tag in _tags(table)}
        tag = value.get("kind", getattr(default, "kind", ""))
        if isinstance(tag, str) and tag in tags:
            return self.table(tags[tag], value, path, default)
        got = f"unknown kind {reprlib.repr(tag)}" if "kind" in value else "missing"
        return self.reject(_join(path, "kind"), f"{got}; {suggest(str(tag), tags)}")

    def array(self, kind: Any, value: Sequence[object], path: str) -> object:
        args = get_args(kind)
        members = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        if len(members) != len(value):
            return self.reject(path, f"expected {len(members)} items, got {len(value)}")
        return tuple(
            self.value(member, item, _join(path, index))
            for index, (member, item) in enumerate(zip(members, value, strict=True))
        )

    def leaf(self, kind: Any, value: object, path: str) -> object:
        # Here and not above, because pydantic would triple the time of `import equilm`.
        from pydantic import ConfigDict, TypeAdapter, ValidationError

        adapter = TypeAdapter[object](kind, config=ConfigDict(strict=True, extra="forbid"))
        try:
            # Strict JSON is the one mode that takes an int for a float and converts nothing else.
            return adapter.validate_json(json.dumps(value, default=str))
        except ValidationError as error:
            wanted = dict.fromkeys(problem["msg"] for problem in error.errors())
            expected = " or ".join(wanted).replace("Input should be ", "")
            expected = expected.replace("an object", "a table")
            words = [word for word in get_args(kind) if isinstance(word, str)]
            hint = f"; {suggest(value, words)}" if isinstance(value, str) and words else ""
            return self.reject(path, f"expected {expected}, got {reprlib.repr(value)}{hint}")


def _read(path: Path) -> Any:
    parsers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in parsers:
        raise ConfigError(f"{path}: expected a .toml or .json file")
    try:
        return parsers[path.suffix](path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = _closest(path.name, (one.name for one in path.parent.glob("*.*")), cutoff=0.6)
        near += [str(one) for one in path.parent.glob("*/*.*") if one.name == path.name]
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _apply(node: Any, override: str, defaults: object) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not all((*parents, last)):
        raise ConfigError(f"override {override!r}: expected key=value, as in `solver.damping=0.8`")
    for part in parents:
        defaults = defaults.get(part) if isinstance(defaults, dict) else None
        if isinstance(node, dict) and part not in node:
            # A table may be partial, for `decode` completes it; an array may not.
            node[part] = defaults if isinstance(defaults, list) else {}
        node = node[_index(node, part, override)]
    node[_index(node, last, override)] = _parse(text.strip())


def _index(node: object, part: str, override: str) -> str | int:
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    place = f"an array of {len(node)}" if isinstance(node, list) else reprlib.repr(node)
    raise ConfigError(f"override {override!r}: there is no `{part}` in {place}")


def _parse(text: str) -> object:
    if text in ("none", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _keys(cls: Any) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init]


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _tags(table: Any) -> tuple[str, ...]:
    tags = get_args(get_type_hints(table).get("kind"))
    assert tags, f"{table} is one of several tables, so it needs `kind: Literal[...]`"
    return tags


def _closest(name: str, choices: Iterable[str], *, cutoff: float) -> list[str]:
    spellings = {choice.lower(): choice for choice in choices}
    return [spellings[one] for one in difflib.get_close_matches(name.lower(), spellings, 1, cutoff)]


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
