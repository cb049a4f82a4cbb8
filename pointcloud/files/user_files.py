"""Which files a command line means: single files, folders (with all below them) and patterns, also unexpanded ones."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from pointcloud.files.meshes import MESHES, TEXT_CLOUDS

KNOWN = (*MESHES, *TEXT_CLOUDS, ".npy")
AMBIGUOUS = (".txt", ".csv")  # a folder of shapes may hold lists and notes under these names


@dataclass(frozen=True)
class UserFile:
    """A file to work on, or an argument that names none.

    path: as printed. name: of its outputs, without suffix; below a folder given by the user, its path within.
    mistake: "" or, for an argument without files, what is wrong with it.
    """

    path: Path
    name: str = ""
    mistake: str = ""

    @property
    def size(self) -> int:
        """In bytes; 0 where there is no such file."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def find_files(arguments: Sequence[Path | str], *, leave_out: Path | None = None) -> list[UserFile]:
    """Every file that the arguments mean, once, in their order; below folders sorted by path.

    Folders are searched to any depth for the known types, without hidden files and folders and without text files
    whose first lines hold no coordinates. A pattern (* ? [ ], ** for any depth) that no shell has expanded is
    expanded here; a file whose own name reads like a pattern is taken as that file.

    Args:
        leave_out: a folder that is not searched: where outputs go, which would become inputs of the next run.
    """
    found: dict[Path, UserFile] = {}
    names: set[str] = set()
    for argument in map(Path, arguments):
        for file in _expand(argument, leave_out):
            key = Path(os.path.abspath(file.path))
            if key not in found:
                found[key] = file if file.mistake else UserFile(file.path, _unused(file, names))
    return list(found.values())


def _expand(argument: Path, leave_out: Path | None) -> Iterator[UserFile]:
    if argument.is_dir():
        yield from _search(argument, leave_out) or [UserFile(argument, mistake=_holds_none(argument))]
    elif argument.exists() or not glob.has_magic(str(argument)):
        yield UserFile(argument, argument.stem)  # one that does not exist is told when it is read
    else:
        matches = []
        for path in sorted(map(Path, glob.glob(str(argument), recursive=True))):
            if path.is_dir():
                matches += _search(path, leave_out)
            elif _is_shape(path):
                matches.append(UserFile(path, path.stem))
        yield from matches or [UserFile(argument, mistake=f"{argument}: the pattern matches no mesh or cloud")]


def _search(folder: Path, leave_out: Path | None) -> list[UserFile]:
    paths = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [n for n in folders if not n.startswith(".") and not _is_same(here / n, leave_out)]
        paths += [here / name for name in names if not name.startswith(".")]
    shapes = filter(_is_shape, sorted(paths))
    return [UserFile(path, path.relative_to(folder).with_suffix("").as_posix()) for path in shapes]


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and path.samefile(other)


def _is_shape(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in KNOWN and path.is_file() and (suffix not in AMBIGUOUS or _holds_coordinates(path))


def _holds_coordinates(path: Path) -> bool:
    """Whether one of a text file's first lines begins with three numbers; True where it cannot be read, to be told."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return True
    for line in head.replace(b",", b" ").replace(b";", b" ").splitlines()[:8]:
        try:
            if len([float(word) for word in line.split()[:3]]) == 3:
                return True
        except ValueError:
            continue
    return False


def _holds_none(folder: Path) -> str:
    return f"{folder}: the folder holds no mesh or cloud ({' '.join(KNOWN)})"


def _unused(file: UserFile, names: set[str]) -> str:
    """A name that no other output has, capitals aside (some file systems do not tell them apart)."""
    tries = chain(
        [file.name, f"{file.name}-{file.path.suffix[1:].lower()}"], (f"{file.name}-{number}" for number in count(2))
    )
    name = next(name for name in tries if name.lower() not in names)
    names.add(name.lower())
    return name
