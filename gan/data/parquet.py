"""Images in parquet files, as Hugging Face data sets have them: a column of encoded images and one of labels.

The image column, `image` or `img`, is a struct {bytes, path} or binary; the label column, `label` or `fine_label`,
integers. Classes are called as the schema's `huggingface` metadata say, else by their numbers. A source is one file, or
a folder of shards: `train-00000-of-00005.parquet` ... (a split's shards must all be there), or files in a folder
`train`; a folder whose files name no split is one training split.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from gan.data.source import ROLES, ImageSource, Reader, check_labels, digest
from shared_attn.runtime.extras import command
from shared_attn.runtime.messages import one_line

SUFFIX = ".parquet"
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")
KEPT_BYTES = 512 * 2**20  # of row groups in memory
GROUP_BYTES = 2**30  # of one, unpacked
BATCH_ROWS = 256  # unpacked at once, whatever the file says of its size
MOST_ROWS = 2**28  # of a file; ImageNet's 21,841 classes have 2**24


class ParquetImages(ImageSource):
    """The images of some parquet files, one after another.

    Raises:
        ValueError: in one line, where pyarrow is missing, a file is damaged, or a column is missing or of another type.
    """

    random_access = False

    def __init__(self, path: Path, name: str, files: list[Path]):
        self.path, self.name, self._files = path, name, files
        labels: list[np.ndarray] = []
        self._groups: list[tuple[int, int]] = []  # file, row group
        starts = [0]
        names, self._image_column = None, ""
        for place, file in enumerate(files):
            opened = _open(path, file)
            image, label = _find_columns(path, file, opened.schema_arrow)
            if place == 0:
                self._image_column, names = image, _read_names(opened.schema_arrow, label)
            elif image != self._image_column:
                raise ValueError(
                    f"--data {path}: {file.name} has a column {image}, {files[0].name} {self._image_column}"
                )
            labels.append(_read_labels(path, file, opened, label))
            for group in range(opened.metadata.num_row_groups):
                self._groups.append((place, group))
                starts.append(starts[-1] + opened.metadata.row_group(group).num_rows)
        self.labels = np.concatenate(labels)
        self._starts = np.array(starts)
        if len(self.labels) != starts[-1]:
            raise ValueError(f"--data {path}: holds {len(self.labels)} labels for {starts[-1]} rows")
        self.class_names = check_labels(f"--data {path}", self.labels, names)
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        self.identity = digest(stamps, self.class_names)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, item: int) -> bytes:
        group = int(np.searchsorted(self._starts, item, side="right")) - 1
        found = self._load(group)[item - int(self._starts[group])].as_py()
        if found is None:
            raise ValueError("its bytes are not in the file")
        return found

    def read_block(self, start: int, stop: int) -> Reader:
        del start, stop  # row groups are kept for a while, which is enough for neighbours
        return self.read

    def describe(self, item: int) -> str:
        group = int(np.searchsorted(self._starts, item, side="right")) - 1
        file, _ = self._groups[group]
        first = next(
            start for (place, _), start in zip(self._groups, self._starts.tolist(), strict=False) if place == file
        )
        return f"{self._files[file].name} row {item - first}"

    def _load(self, group: int) -> Any:
        """The encoded images of a row group, as an Arrow array."""
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
            file, number = self._groups[group]
            array = _read_group(_open(self.path, self._files[file]), self._files[file], number, self._image_column)
            if len(array) != self._starts[group + 1] - self._starts[group]:
                raise ValueError(f"row group {number} holds {len(array)} images, not as many as it says")
            self._kept[group] = array
            while len(self._kept) > 2 and sum(part.nbytes for part in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return array

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _kept=OrderedDict())


def _read_group(opened: Any, file: Path, number: int, column: str) -> Any:
    """The encoded images of a row group, a few at a time: a dictionary of one can stand for a million of them."""
    import pyarrow

    # Not by what the metadata say of each column: asked for that, pyarrow ends the process where they are damaged.
    stored = max(1, opened.metadata.row_group(number).total_byte_size, file.stat().st_size)
    rows = min(BATCH_ROWS, max(1, GROUP_BYTES // stored))
    parts, held = [], 0
    for batch in opened.iter_batches(rows, row_groups=[number], columns=[column]):
        part = batch.column(0)
        part = part.field("bytes") if part.type.num_fields else part
        parts.append(part)
        held += part.nbytes
        if held > GROUP_BYTES:
            raise ValueError(f"row group {number} unpacks to more than {GROUP_BYTES:,} bytes")
    return pyarrow.concat_arrays(parts)


def open_parquet(path: Path, split: str) -> ParquetImages | None:
    """The split of a file or a folder of parquet files; None for a folder that holds none.

    Raises:
        ValueError: in one line, where the split or one of its shards is missing.
    """
    if path.is_file():
        found = [path] if path.suffix.lower() == SUFFIX else []
    else:
        found = sorted(
            Path(root, name)
            for root, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(SUFFIX) and not name.startswith(".")
        )
    if not found:
        return None
    by_role: dict[str, list[Path]] = {}
    for file in found:
        by_role.setdefault(_find_role(file, path), []).append(file)
    if list(by_role) == [""] and split == "train":
        return ParquetImages(path, path.name, found)
    chosen = next((role for role in ROLES[split] if role in by_role), None)
    if chosen is None and path.is_file() and split == "train":  # the one file that was asked for
        chosen = next(iter(by_role))
    if chosen is None:
        raise ValueError(
            f"--data {path}: holds no parquet file of the {split} split, expected "
            f"{ROLES[split][0]}-00000-of-00001.parquet or the like"
        )
    if path.is_dir():
        _check_shards(path, by_role[chosen])
    name = path.name if path.is_file() or split == "train" else f"{path.name}-{chosen}"
    return ParquetImages(path, name, by_role[chosen])


def _find_role(file: Path, path: Path) -> str:
    """The split that a file's name or folder says, or nothing."""
    shard = SHARD.fullmatch(file.stem)
    folder = file.parent.name if file.parent != path else ""
    named = (shard["split"] if shard else file.stem, folder)
    return next((name for name in named if name in {role for roles in ROLES.values() for role in roles}), "")


def _check_shards(path: Path, files: list[Path]) -> None:
    shards = [match for file in files if (match := SHARD.fullmatch(file.stem))]
    for count in {int(match["count"]) for match in shards}:
        here = {int(match["number"]) for match in shards if int(match["count"]) == count}
        if missing := sorted(set(range(count)) - here):
            name = f"{shards[0]['split']}-{missing[0]:05d}-of-{count:05d}.parquet"
            raise ValueError(f"--data {path}: {name} is missing, {len(here)} of {count} shards are there")


def _open(path: Path, file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"--data {path}: parquet files need pyarrow: {command('parquet')}") from error

    try:
        opened = pyarrow.parquet.ParquetFile(file)
        if not 0 <= opened.metadata.num_rows <= MOST_ROWS:
            raise ValueError(f"claims {opened.metadata.num_rows:,} rows")
        return opened
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"--data {path}: {file.name} is not a readable parquet file ({one_line(error)})") from error


def _find_columns(path: Path, file: Path, schema: Any) -> tuple[str, str]:
    from pyarrow import types

    expected = "expected image (or img), a struct {bytes, path} or binary, and label (or fine_label), integers"
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise ValueError(f"--data {path}: {file.name} has the columns {', '.join(schema.names)}; {expected}")
    kind = schema.field(image).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise ValueError(f"--data {path}: {file.name}'s column {image} is {kind}; {expected}")
    if not types.is_integer(schema.field(label).type):
        raise ValueError(f"--data {path}: {file.name}'s column {label} is {schema.field(label).type}; {expected}")
    return image, label


def _read_labels(path: Path, file: Path, opened: Any, column: str) -> np.ndarray:
    import pyarrow

    try:
        found = opened.read(columns=[column]).column(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"--data {path}: {file.name}'s column {column} cannot be read ({one_line(error)})") from error
    if found.null_count:
        raise ValueError(f"--data {path}: {file.name} has {found.null_count} rows without a {column}")
    return found.to_numpy().astype(np.int64)


def _read_names(schema: Any, column: str) -> list[str] | None:
    """The classes' names as the datasets library stores them, where it did."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return names if usable else None
