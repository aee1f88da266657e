"""Folders written whole or not at all. Knows nothing of what is in them. Read `folder.py` next."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold exactly `files`, on the disk, or leave everything as it was.

    The files are written into a hidden sibling that then takes the name. What had the name before
    is moved aside for a moment: killed in that moment, a process leaves it under `aside(folder)`.

    Args:
        folder: Replaced if there; folders above are made. One writer at a time.
        files: Contents by plain file name.

    Raises:
        OSError: If it could not be written.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        for name, data in files.items():
            write_file(unfinished / name, data)
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def aside(folder: Path) -> Path:
    """Return where a folder is while another takes its name."""
    return folder.with_name(f".{folder.name}.replaced")


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Give a folder whose files are on the disk the name `folder`, in place of what has it.

    Raises:
        OSError: If it could not be renamed; what had the name has it still.
    """
    _sync(unfinished)
    before = aside(folder)
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    try:
        unfinished.rename(folder)
    except OSError:
        if before.exists():
            before.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
