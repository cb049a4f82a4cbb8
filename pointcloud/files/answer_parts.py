"""Answers about very many files, kept while they are computed: what is written stays, whatever is killed.

Each process has a part of its own, a file that grows by a line an answer: the file's number among all, a tab, and the
answer as JSON. A line is an answer once it has its end; what a kill has torn off is cut, and computed again. At the end
the parts become one file with an answer a line, in the files' order, each once.

F files.
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from shared_attn.runtime.files import atomic_write, naming
from shared_attn.runtime.record_lock import lock_file

SETTINGS = "settings.json"


class PartWriter:
    """Context manager that appends answers to a part, which one process at a time may do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> PartWriter:
        with naming(self._path):
            self._file = open(self._path, "ab+", buffering=0)  # noqa: SIM115, closed by __exit__
        try:
            lock_file(self._file.fileno())  # where there are no locks, nothing tells
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(f"--answers: another process is writing {self._path}") from error
        self._file.seek(0)
        whole = self._file.read()
        self._file.truncate(whole.rfind(b"\n") + 1)
        return self

    def add(self, number: int, answer: Mapping[str, Any]) -> None:
        """Writes the answer about a file; once this returns, killing the process does not lose it."""
        line = f"{number}\t{json.dumps(answer)}\n".encode()
        with naming(self._path):
            written = self._file.write(line)
            if written < len(line):  # a full disk takes what fits, and refuses the rest
                self._file.write(line[written:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def open_parts(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Makes a folder of parts, or checks that it holds answers to the same question.

    Returns:
        Whether they are complete, and merged already.

    Raises:
        ValueError: its answers are of other files, weights or flags.
        OSError: it cannot be written.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SETTINGS).exists():
        write_settings(folder, settings, complete=False)
        return False
    return check_settings(folder, settings)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder's answers are complete; see `open_parts`."""
    try:
        known = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        complete = bool(known.pop("complete"))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / SETTINGS}: not readable; remove {folder} to start over") from error
    given = json.loads(json.dumps(settings, default=str))
    differences = [
        f"{name} was {known.get(name)!r}, is {given.get(name)!r}"
        for name in sorted(known.keys() | given.keys())
        if known.get(name) != given.get(name)
    ]
    if differences:
        raise ValueError(
            f"--answers: {folder} holds answers to another question ({'; '.join(differences)}); "
            "give another file, or remove that folder to start over"
        )
    return complete


def write_settings(folder: Path, settings: Mapping[str, Any], *, complete: bool) -> None:
    with atomic_write(folder / SETTINGS, "w") as file:
        json.dump({**settings, "complete": complete}, file, indent=2, default=str)


def find_answered(folder: Path, count: int) -> bytearray:
    """(F,) 1 for each file that any part has an answer for."""
    answered = bytearray(count)
    for path in _parts(folder):
        for number, _ in _scan(path, count):
            answered[number] = 1
    return answered


def merge_parts(folder: Path, path: Path, count: int) -> int:
    """Writes the answers of all parts to `path`, a JSON object a line, in the files' order; memory grows by 12 bytes a
    file.

    Returns:
        Of how many files the answer is an error.
    """
    parts = _parts(folder)
    part_of, start_of = array("i", [0]) * count, array("q", [-1]) * count
    for place, part in enumerate(parts):
        for number, start in _scan(part, count):
            part_of[number], start_of[number] = place, start
    errors = 0
    with contextlib.ExitStack() as stack, atomic_write(path) as merged:
        files = [stack.enter_context(open(part, "rb")) for part in parts]
        for number in range(count):
            if start_of[number] < 0:
                raise ValueError(f"{folder}: no answer about file {number}; run the same command again")
            file = files[part_of[number]]
            file.seek(start_of[number])
            answer = file.readline().partition(b"\t")[2]
            errors += "error" in json.loads(answer)
            merged.write(answer)
    return errors


def count_errors(path: Path) -> int:
    """Of how many files the merged answers tell an error."""
    with open(path, "rb") as file:
        return sum("error" in json.loads(line) for line in file)


def remove_parts(folder: Path) -> None:
    """The settings stay: they tell what the merged answers are of."""
    for path in _parts(folder):
        path.unlink()


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.jsonl"))


def part_path(folder: Path, rank: int) -> Path:
    return folder / f"part-{rank:05d}.jsonl"


def _scan(path: Path, count: int) -> Iterator[tuple[int, int]]:
    """Numbers of the whole answers of a part, and where their lines start."""
    start = 0
    with open(path, "rb") as file:
        for line in file:
            number = _read_number(line, count)
            if number is not None:
                yield number, start
            start += len(line)


def _read_number(line: bytes, count: int) -> int | None:
    """None for a line that is torn, or not one of ours (a power cut may leave zeros)."""
    number, _, answer = line.partition(b"\t")
    if not line.endswith(b"\n") or not number.isdigit() or int(number) >= count:
        return None
    try:
        return int(number) if isinstance(json.loads(answer), dict) else None
    except ValueError:
        return None
