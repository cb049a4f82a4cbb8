"""Every image of a source decoded once: into memory, or into a file of the cache folder that is mapped.

Legend: N images of the source, M readable ones, S image size.
"""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gan.data.decoding import DAMAGE, check_damage, give_reason, is_damage
from gan.data.source import ImageSource, StoredImages, cache_folder, digest
from shared_attn.runtime.files import atomic_write

CHUNK = 256


@dataclass(frozen=True)
class Decoded:
    """images: (M, S, S, 3) uint8. rows: (M,) the item of each row. places: (N,) the row that stands for each item,
    for a damaged one that of the next readable item. skipped: a line for each damaged item."""

    images: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    skipped: list[str]


def decode_into_memory(source: ImageSource, size: int) -> Decoded:
    """Decode all of a source.

    Raises:
        ValueError: where too many images are damaged; OSError: where one cannot be read for another reason.
    """
    if isinstance(source, StoredImages) and source.pixels.shape[1:3] == (size, size):
        everything = np.arange(len(source.labels))
        return Decoded(source.pixels, everything, everything, [])
    images = np.empty((len(source.labels), size, size, 3), dtype=np.uint8)
    return _compact(source, images, _fill(source, images))


def find_mapped(source: ImageSource, size: int) -> Decoded | None:
    """What `decode_into_cache` has made of a source before."""
    kept, report = _cache_files(source, size)
    shape = (len(source.labels), size, size, 3)
    if not report.is_file() or not kept.is_file() or kept.stat().st_size != np.prod(shape, dtype=np.int64):
        return None
    lines = [line.split("\t", 1) for line in report.read_text(encoding="utf-8").splitlines()]
    # Copy-on-write: compacting moves rows in memory, never in the file.
    images = np.memmap(kept, dtype=np.uint8, mode="c", shape=shape)
    return _compact(source, images, {int(item): reason for item, reason in lines})


def decode_into_cache(source: ImageSource, size: int) -> Decoded:
    """As `decode_into_memory`, mapped from a file of the cache folder, which is made when it is not there.

    Raises:
        OSError: where the cache folder has no room, in addition.
    """
    if (found := find_mapped(source, size)) is not None:
        return found
    kept, report = _cache_files(source, size)
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        shape = (len(source.labels), size, size, 3)
        _reserve(part, int(np.prod(shape, dtype=np.int64)), source)
        written = np.memmap(part, dtype=np.uint8, mode="r+", shape=shape)
        failures = _fill(source, written)
        check_damage(source.path, _list_failures(source, failures), len(source.labels))
        written.flush()
        os.replace(part, kept)
    finally:
        part.unlink(missing_ok=True)
    with atomic_write(report, "w") as file:  # last: it says that the other file is whole
        file.writelines(f"{item}\t{reason}\n" for item, reason in sorted(failures.items()))
    found = find_mapped(source, size)
    assert found is not None, "the file was written just now"
    return found


def _cache_files(source: ImageSource, size: int) -> tuple[Path, Path]:
    key = digest(source.identity, size)[:32]
    return cache_folder() / "images" / f"{key}.raw", cache_folder() / "images" / f"{key}.txt"


def _reserve(path: Path, count: int, source: ImageSource) -> None:
    """Make a file of `count` bytes whose room on the disk is taken: a mapped file on a full disk kills the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, count)
            except AttributeError:  # not on this system
                file.truncate(count)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                file.truncate(count)
    except OSError as error:
        raise OSError(
            f"--data {source.path}: decoding it once takes {count / 2**30:.1f} GiB in {path.parent}, which cannot be "
            f"written ({error.strerror}); --stream always needs none of it, EAGAN_EAT_CACHE names another folder"
        ) from error


def _fill(source: ImageSource, images: np.ndarray) -> dict[int, str]:
    """Decode every item into its row, on all cores; returns what is wrong with each that could not be."""
    from tqdm import tqdm

    def decode_chunk(start: int) -> dict[int, str]:
        failures = {}
        stop = min(start + CHUNK, len(images))
        try:
            read = source.read_block(start, stop)
        except DAMAGE as error:
            if not is_damage(error):
                raise OSError(f"--data {source.path}: cannot be read ({give_reason(error)})") from error
            read = source.read  # which of them is damaged, one by one
        for item in range(start, stop):
            pixels = source.decode(item, images.shape[1], read)
            if isinstance(pixels, str):
                failures[item] = pixels
            else:
                images[item] = pixels
        return failures

    failures: dict[int, str] = {}
    pool = ThreadPoolExecutor(os.cpu_count())
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        chunks = pool.map(decode_chunk, range(0, len(images), CHUNK))
        for found in tqdm(chunks, desc="decoding", total=-(-len(images) // CHUNK), delay=3, leave=False, disable=None):
            failures.update(found)
    return failures


def _list_failures(source: ImageSource, failures: dict[int, str]) -> list[str]:
    return [f"{source.describe(item)}: {reason}" for item, reason in sorted(failures.items())]


def _compact(source: ImageSource, images: np.ndarray, failures: dict[int, str]) -> Decoded:
    """Move the last readable rows into the damaged ones' places."""
    total, lines = len(images), _list_failures(source, failures)
    check_damage(source.path, lines, total)
    readable = total - len(failures)
    rows = np.arange(total)
    spare = [item for item in range(readable, total) if item not in failures]
    for item in sorted(failures):
        if item < readable:
            rows[item] = spare.pop()
            images[item] = images[rows[item]]
    places = np.empty(total, dtype=np.int64)
    places[rows[:readable]] = np.arange(readable)
    for item in sorted(failures, reverse=True):
        following = (item + 1) % total
        while following in failures:
            following = (following + 1) % total
        places[item] = places[following]
    return Decoded(images[:readable], rows[:readable], places, lines)
