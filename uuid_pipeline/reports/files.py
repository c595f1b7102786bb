"""Where rendered reports stand: a directory below the home for each plan or execution, for its owner's eyes only."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def directory(home: Path, subject: str, *below: str) -> Path:
    """The directory of a plan's or an execution's reports, made if it is missing."""
    made = home.joinpath("reports", subject, *below)
    made.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkdir gives the mode to the last one alone.
    for part in (home / "reports", home / "reports" / subject, made):
        part.chmod(0o700)
    return made


def emptied(place: Path) -> Path:
    """A directory of ours without the files of an earlier call."""
    place.mkdir(exist_ok=True, mode=0o700)
    for old in place.iterdir():
        old.unlink()
    return place


def write(path: Path, text: str) -> Path:
    """Write a file whole or not at all, readable by its owner alone."""
    with writing(path) as file:
        file.write(text)
    return path


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A file that takes its place when everything is written; what was there stays when something fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
