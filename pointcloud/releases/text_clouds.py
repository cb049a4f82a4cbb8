"""Point clouds in text files of any size: x y z first in each line, read in blocks to spare memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 2**24  # bytes of text at once
LONGEST_LINE = 2**20
MOST_POINTS = 2**28  # 6 GB of coordinates


def read_text_cloud(path: Path, block: int = BLOCK) -> np.ndarray:
    """(N, 3) float64. Columns stand apart by blanks, commas or semicolons; those after the third are left out, as are
    empty lines, # comments, and a first line with the number of points or the columns' names (or one of each).

    Raises:
        ValueError: in one line, naming the file and the first line that is not such a line.
    """
    pieces: list[np.ndarray] = [np.empty((0, 3))]
    before = points = 0  # lines and points of the blocks already read
    for content in _blocks(path, block):
        try:
            lines = content.decode("utf-8-sig" if before == 0 else "utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file") from error
        skip = _heading(lines) if before == 0 else 0
        pieces.append(_parse(path, lines[skip:], before + skip))
        before += len(lines)
        points += len(pieces[-1])
        if points > MOST_POINTS:
            raise ValueError(f"{path}: more than {MOST_POINTS:,} points")
    return np.concatenate(pieces)


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The file in blocks of whole lines."""
    rest = b""
    with open(path, "rb") as file:
        while piece := file.read(size):
            whole, newline, piece = (rest + piece).rpartition(b"\n")
            if newline:
                yield whole + newline
            rest = piece
            if len(rest) > LONGEST_LINE:
                raise ValueError(f"{path}: not a text file of points: a line has more than {LONGEST_LINE:,} bytes")
    if rest:
        yield rest


def _words(line: str) -> list[str]:
    return line.partition("#")[0].replace(",", " ").replace(";", " ").split()


def _heading(lines: list[str]) -> int:
    """How many lines come before the first point: a number of points, names of columns."""
    filled = [(number, words) for number, line in enumerate(lines[:64]) if (words := _words(line))]
    skip = 0
    if filled and len(filled[0][1]) == 1 and filled[0][1][0].isdigit():
        skip = filled.pop(0)[0] + 1
    if filled and not _is_number(filled[0][1][0]):
        skip = filled[0][0] + 1
    return skip


def _parse(path: Path, lines: list[str], before: int) -> np.ndarray:
    """numpy reads a block at once; where it cannot, the slower way finds the bad line, or reads floats as Python."""
    separated = [line.replace(",", " ").replace(";", " ") for line in lines] if _is_separated(lines) else lines
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a block without data
            return np.loadtxt(separated, usecols=(0, 1, 2), ndmin=2, comments="#").reshape(-1, 3)
    except ValueError:
        pass
    points = []
    for number, line in enumerate(lines, start=before + 1):
        words = _words(line)
        if not words:
            continue
        if len(words) < 3 or not all(_is_number(word) for word in words[:3]):
            raise ValueError(f"{path}: line {number}: expected x y z, got {' '.join(words)[:40]!r}")
        points.append([float(word) for word in words[:3]])
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def _is_separated(lines: list[str]) -> bool:
    return any("," in line or ";" in line for line in lines)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
