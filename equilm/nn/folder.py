"""A model folder: `config.json` and `model.safetensors`, written whole or not at all.

    config.json = {"format": "equilm-model", "version": 1, "model": {…}, "sha256": {file: digest}}

Checkpoints are model folders with more files beside. Nothing in a folder is ever unpickled. Other
formats are read by `equilm/hf/convert.py`; read it next.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from equilm.config import decode, encode
from equilm.nn import shards
from equilm.nn.atomic import aside, write_folder
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.nn.shards import SHARDS

FORMAT, VERSION = "equilm-model", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class CheckpointError(ValueError):
    """A folder of weights that cannot be trusted or understood: a line that says where and why."""


def save_model(
    model: LanguageModel,
    folder: str | os.PathLike[str],
    *,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write the model folder, whole or not at all; an older one of that name is replaced.

    Args:
        model: What to save; its parameters keep their types.
        folder: Where; folders above are made.
        extra: Files to put beside, by name; `read_extra` reads them back.

    Raises:
        ValueError: For an extra file that is no plain name or is one of the folder's own.
        CheckpointError: If `folder` is there and is no model folder.
        OSError: If it could not be written; what was there is as it was.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not (folder / CONFIG).exists():
            raise CheckpointError(f"{folder}: is there and is no model folder; choose another name")
        _read_settings(folder)
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in model.state_dict().items()}
    files = {WEIGHTS: safetensors.torch.save(tensors)}
    for name, data in (extra or {}).items():
        if not re.fullmatch(r"\w[\w.-]*", name) or name in (CONFIG, WEIGHTS):
            raise ValueError(f"extra: expected plain names of other files, got {name!r}")
        files[name] = data
    settings = {
        "format": FORMAT,
        "version": VERSION,
        "model": encode(model.config),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[CONFIG] = (json.dumps(settings, indent=2) + "\n").encode()
    write_folder(folder, files)


def load_model(
    folder: str | os.PathLike[str], *, device: torch.device | str | None = None
) -> LanguageModel:
    """Build the model of a folder, after checking it against its digests.

    Args:
        folder: What `save_model` wrote; files that it does not know are left alone.
        device: Where to put the parameters; `None` means the CPU.

    Returns:
        The model in evaluation mode; `.train()` turns its dropout on.

    Raises:
        CheckpointError: For a folder or file that is missing, truncated, tampered with, of another
            format or version, or whose tensors do not fit its configuration.
    """
    config, tensors = _read(Path(folder))
    model = assemble(config, tensors, where=str(Path(folder, WEIGHTS)))
    return model.eval().to(device=device)


def load_weights(
    model: LanguageModel,
    folder: str | os.PathLike[str],
    *,
    place: Callable[[Tensor, Tensor], Tensor] = lambda leaf, like: leaf,
) -> None:
    """Overwrite the parameters of `model` in place with those of a model folder.

    Args:
        model: Of the same sizes.
        folder: What `save_model` wrote.
        place: (tensor, parameter) → the tensor laid out as the parameter, where that is spread.

    Raises:
        CheckpointError: As `load_model`; also if the parameters are not those of `model`, which
            then is as it was.
    """
    _, tensors = _read(Path(folder))
    state = model.state_dict()
    _check_fit(state, tensors, where=str(Path(folder, WEIGHTS)))
    model.load_state_dict({name: place(leaf, state[name]) for name, leaf in tensors.items()})


def read_extra(folder: str | os.PathLike[str], name: str) -> bytes:
    """Read back a file that `save_model` was given as `extra`, after checking its digest.

    Raises:
        CheckpointError: If it is missing or was changed.
    """
    folder = Path(folder)
    _verify(folder, name, _read_settings(folder))
    return (folder / name).read_bytes()


def complete_checkpoints(run: str | os.PathLike[str]) -> list[Path]:
    """Return the whole `checkpoints/step-<number>` folders of a run, oldest first."""
    steps = {}
    for folder in Path(run, "checkpoints").glob("step-*"):
        number = folder.name.removeprefix("step-")
        whole = (folder / WEIGHTS).is_file() or (folder / SHARDS).is_dir()
        if number.isdecimal() and (folder / CONFIG).is_file() and whole:
            steps[int(number)] = folder
    return [steps[number] for number in sorted(steps)]


def assemble(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    source_name: Callable[[str], str] = str,
) -> LanguageModel:
    """Build the model of `config` around given parameters, without drawing or copying any.

    Args:
        config: Sizes.
        tensors: Every parameter by its name at its source, and nothing else.
        where: Where they came from, the start of an error's line.
        source_name: The name at the source of a parameter of the model; one and the same, if left.

    Raises:
        CheckpointError: Names what is missing, unexpected, mis-shaped or no floating-point tensor.
    """
    try:
        with torch.device("meta"):
            model = LanguageModel(config)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    names = {name: source_name(name) for name in model.state_dict()}
    expected = {names[name]: leaf for name, leaf in model.state_dict().items()}
    _check_fit(expected, tensors, where=where)
    model.load_state_dict({name: tensors[names[name]] for name in names}, assign=True)
    return model


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file, on the CPU.

    Raises:
        CheckpointError: If it is missing or no whole safetensors file.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: no whole safetensors file ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one table.

    Raises:
        CheckpointError: If it is missing, no JSON, or holds something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no JSON file ({error})") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: expected a table, got {type(table).__name__}")
    return table


def _read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    settings = _read_settings(folder)
    try:
        config = decode(ModelConfig, settings.get("model", {}), where=str(folder / CONFIG))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if settings["format"] == shards.FORMAT:
        try:
            return config, shards.read_model(folder)
        except shards.ShardsError as error:
            raise CheckpointError(str(error)) from None
    _verify(folder, WEIGHTS, settings)
    return config, read_safetensors(folder / WEIGHTS)


def _read_settings(folder: Path) -> dict[str, Any]:
    if not folder.exists() and aside(folder).exists():
        raise CheckpointError(f"{folder}: a save was cut short; rename {aside(folder)} back to it")
    settings = read_json(folder / CONFIG)
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if settings.get(key) not in (expected, shards.FORMAT if key == "format" else expected):
            raise CheckpointError(
                f"{folder / CONFIG}: {key}: expected {expected!r}, got {settings.get(key)!r}"
            )
    return settings


def _verify(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    digests = settings.get("sha256")
    expected = digests.get(name) if isinstance(digests, dict) else None
    if expected is None:
        raise CheckpointError(f"{folder / CONFIG}: sha256: expected a digest of {name}, got none")
    try:
        with (folder / name).open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{folder / name}: no such file") from None
    if got != expected:
        raise CheckpointError(
            f"{folder / name}: truncated or changed since it was saved: "
            f"expected sha256 {expected[:12]}…, got {got[:12]}…"
        )


def _check_fit(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, where: str
) -> None:
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    problems = [
        f"{problem} {_listed(sorted(names))}"
        for problem, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    for name in sorted(expected.keys() & tensors.keys()):
        wanted, got = tuple(expected[name].shape), tuple(tensors[name].shape)
        if wanted != got:
            problems.append(f"{name}: expected shape {wanted}, got {got}")
        if not tensors[name].is_floating_point():
            problems.append(f"{name}: expected floating-point numbers, got {tensors[name].dtype}")
    if problems:
        raise CheckpointError(f"{where}: {_listed(problems, '; ')}")


def _listed(items: list[str], separator: str = ", ") -> str:
    rest = f" and {len(items) - 6} more" if len(items) > 6 else ""
    return separator.join(items[:6]) + rest
