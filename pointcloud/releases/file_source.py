"""The files of a folder or of a zip, read alike and without unpacking."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from shared_attn.runtime.archives import ZIP_ERRORS, leads_out, open_zip
from shared_attn.runtime.seeding import mix_seed

DEPTH = 3  # the deepest layout is CLASS/SPLIT/NAME


class FileSource:
    """Files by their names relative to the folder, or in the zip. A zip may hold its folder as a whole.

    Raises:
        ValueError: a zip that cannot be read, or a damaged file in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._zip = path, None
        if not path.is_dir():
            try:
                self._zip = open_zip(path)
            except (ValueError, OSError) as error:
                raise ValueError(f"{path}: {error}; remove it to download it anew") from error

    @cached_property
    def names(self) -> list[PurePosixPath]:
        """Sorted, each once, without hidden files and what macOS adds to zips."""
        found = self._walk() if self._zip is None else (PurePosixPath(i.filename) for i in self._files_in_zip())
        return sorted({name for name in found if name.parts[0] != "__MACOSX" and not name.name.startswith(".")})

    def find(self, name: str) -> PurePosixPath | None:
        """The file of this name at the top: of a folder, or of a zip's outermost folder that has one."""
        if self._zip is None:
            return PurePosixPath(name) if (self.path / name).is_file() else None
        return min((found for found in self.names if found.name == name), key=lambda n: len(n.parts), default=None)

    def read(self, name: PurePosixPath) -> bytes:
        if leads_out(name):  # a release's own lists name files too
            raise ValueError(f"{self.path}: {str(name)!r} leads out of it, and is refused")
        if self._zip is None:
            if not (self.path / name).is_file():  # a pipe would never end
                raise ValueError(f"{self.path}: lacks {name}")
            return (self.path / name).read_bytes()
        try:
            return self._zip.read(str(name))
        except KeyError as error:
            raise ValueError(f"{self.path}: lacks {name}") from error
        except (*ZIP_ERRORS, OSError) as error:
            raise ValueError(f"{self.path}: {name} in it is damaged ({error})") from error

    def read_lines(self, name: PurePosixPath) -> list[str]:
        """The lines of a text file that hold anything."""
        try:
            text = self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.describe(name)}: not a text file") from error
        return [line.strip() for line in text.splitlines() if line.strip()]

    def describe(self, name: PurePosixPath) -> Path:
        """How messages call a file."""
        return self.path / name

    def stamp(self) -> int:
        """A number that changes when a file is added, removed or written."""
        if self._zip is not None:
            return mix_seed(_state(self.path))
        return mix_seed(*(f"{name} {_state(self.path / name)}" for name in self.names))

    def _walk(self) -> Iterator[PurePosixPath]:
        for folder, folders, files in os.walk(self.path, followlinks=True):
            inside = Path(folder).relative_to(self.path)
            if len(inside.parts) >= DEPTH - 1:
                folders.clear()
            yield from (PurePosixPath(inside.as_posix()) / file for file in files)

    def _files_in_zip(self) -> list[zipfile.ZipInfo]:
        return [] if self._zip is None else [info for info in self._zip.infolist() if not info.is_dir()]

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()


def _state(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns}"
