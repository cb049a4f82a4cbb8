"""Images from a folder or a zip of `class/image.jpg`, decoded once into one uint8 array.

Legend: N images, S image size.

Rules, the same for every source:
- The class is the first folder under the folders that all images share; a folder `train` beside `val` or `test` is
  taken alone. Hidden files and files that are not images by their name are left out; classes and files are sorted by
  name. Images without any folder make one class.
- An image is turned as its EXIF orientation says, transparent pixels are laid over white, grey becomes three equal
  channels; then the centred square of its shorter side is cut out and resized to S x S (Lanczos), unless it is S x S.
- Nothing is extracted: a zip's entries are only read.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20
RESIDENT_BYTES = 4 * 2**30  # larger sets are decoded into a memory-mapped file of the cache folder
CORRUPT_FRACTION = 0.05
CHUNK = 256
# What PIL and zipfile raise for damaged content.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class ImageFile:
    """One image in a source: where it is, its class, and what tells a changed file from the same one."""

    path: str
    class_name: str
    stamp: tuple[int, int]


def cache_folder() -> Path:
    """Where decoded data and statistics are kept: $EAGAN_EAT_CACHE, else eagan-eat in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("EAGAN_EAT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "eagan-eat"


def list_images(source: Path) -> list[ImageFile]:
    """All images of a folder or a zip, sorted by class and name.

    Raises:
        ValueError: in one line, for a source that is neither, is damaged or encrypted, or holds no image.
        FileNotFoundError: where there is none.
    """
    if not source.exists():
        raise FileNotFoundError(f"--data {source}: no such file or folder")
    stamps = _list_folder(source) if source.is_dir() else _list_zip(source)
    if not stamps:
        kinds = " ".join(sorted(SUFFIXES))
        raise ValueError(f"--data {source}: holds no images, expected class/image with one of the endings {kinds}")
    folders = {path: PurePosixPath(path).parts[:-1] for path in stamps}
    shared = len(os.path.commonprefix(list(folders.values())))
    tops = {parts[shared] for parts in folders.values() if len(parts) > shared}
    if "train" in tops and tops <= {"train", "val", "valid", "validation", "test"}:
        folders = {path: parts for path, parts in folders.items() if len(parts) > shared and parts[shared] == "train"}
        shared = len(os.path.commonprefix(list(folders.values())))
    loose = [path for path, parts in folders.items() if len(parts) == shared]
    if loose and len(loose) < len(folders):
        raise ValueError(f"--data {source}: {loose[0]} lies beside the class folders, expected class/image.jpg")
    single = next(iter(folders.values()))[-1] if shared else source.stem
    files = [ImageFile(path, single if loose else parts[shared], stamps[path]) for path, parts in folders.items()]
    return sorted(files, key=lambda file: (file.class_name, file.path))


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _list_folder(folder: Path) -> dict[str, tuple[int, int]]:
    stamps = {}
    entered: set[str] = set()
    for root, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:  # a link back to a folder above
            below.clear()
            continue
        entered.add(real)
        for name in names:
            path = Path(root, name)
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            if _is_image(relative) and path.is_file():
                status = path.stat()
                stamps[str(relative)] = (status.st_size, status.st_mtime_ns)
    return stamps


def _list_zip(source: Path) -> dict[str, tuple[int, int]]:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [entry for entry in archive.infolist() if _is_image(PurePosixPath(entry.filename))]
    except zipfile.BadZipFile as error:
        expected = "expected a folder or a zip of images"
        raise ValueError(f"--data {source}: not a readable zip ({error}), {expected}") from error
    if any(entry.flag_bits & 1 for entry in entries):
        raise ValueError(f"--data {source}: the zip is encrypted, expected one without a password")
    return {entry.filename: (entry.file_size, entry.CRC) for entry in entries}


def decode_image(content: bytes, size: int) -> np.ndarray:
    """One image file's bytes to (S, S, 3) uint8, by the rules above.

    Raises:
        ValueError, OSError or another of DAMAGE: for content that is no image, or is too large to be safe.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read")
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip instead of scale
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        return np.asarray(image)


def _reader(source: Path) -> Callable[[ImageFile], bytes]:
    """Reads one file's bytes, from any thread."""
    if source.is_dir():
        return lambda file: (source / file.path).read_bytes()
    local = threading.local()

    def read(file: ImageFile) -> bytes:
        if not hasattr(local, "archive"):
            local.archive = zipfile.ZipFile(source)
        return local.archive.read(file.path)

    return read


def decode_images(source: Path, files: list[ImageFile], size: int) -> tuple[np.ndarray, list[int], list[str]]:
    """Decode files into (N, S, S, 3) uint8.

    Returns:
        The array, the index in `files` of each of its rows, and a line for each file that could not be read; the
        place of such a file is taken by the last readable one.

    Raises:
        ValueError: when more than one file in twenty is damaged.
    """
    needed = len(files) * size * size * 3
    if needed <= RESIDENT_BYTES:
        images = np.empty((len(files), size, size, 3), dtype=np.uint8)
        return _compact(source, images, files, _fill(source, images, files))
    key = hashlib.sha256(repr((str(source.resolve()), size, [(f.path, f.stamp) for f in files])).encode()).hexdigest()
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    kept, report = folder / f"{key[:32]}.npy", folder / f"{key[:32]}.txt"
    if not report.exists():
        part = folder / f"{key[:32]}.{os.getpid()}.part"
        written = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(files), size, size, 3))
        failures = _fill(source, written, files)
        written.flush()
        os.replace(part, kept)
        report.write_text("".join(f"{index}\t{reason}\n" for index, reason in sorted(failures.items())))
    lines = [line.split("\t", 1) for line in report.read_text().splitlines()]
    # Copy-on-write: compacting moves rows in memory, never in the file.
    return _compact(source, np.load(kept, mmap_mode="c"), files, {int(index): reason for index, reason in lines})


def _fill(source: Path, images: np.ndarray, files: list[ImageFile]) -> dict[int, str]:
    """Decode every file into its row, on all cores; returns the reason for each that could not be."""
    from PIL import Image, UnidentifiedImageError
    from tqdm import tqdm

    read = _reader(source)

    def decode_chunk(start: int) -> dict[int, str]:
        failures = {}
        for index in range(start, min(start + CHUNK, len(files))):
            try:
                if files[index].stamp[0] > MAX_FILE_BYTES:
                    raise ValueError(f"{files[index].stamp[0]} bytes, at most {MAX_FILE_BYTES} are read")
                images[index] = decode_image(read(files[index]), images.shape[1])
            except (*DAMAGE, Image.DecompressionBombError) as error:
                unknown = isinstance(error, UnidentifiedImageError)  # its message is an address in memory
                failures[index] = "not an image" if unknown else " ".join(str(error).split()) or type(error).__name__
        return failures

    failures: dict[int, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = pool.map(decode_chunk, range(0, len(files), CHUNK))
        for found in tqdm(chunks, desc="decoding", total=-(-len(files) // CHUNK), delay=3, leave=False, disable=None):
            failures.update(found)
    return failures


def _compact(
    source: Path, images: np.ndarray, files: list[ImageFile], failures: dict[int, str]
) -> tuple[np.ndarray, list[int], list[str]]:
    lines = [f"{files[index].path}: {reason}" for index, reason in sorted(failures.items())]
    readable = len(files) - len(failures)
    if readable == 0 or len(failures) > max(1, CORRUPT_FRACTION * len(files)):
        raise ValueError(
            f"--data {source}: {len(failures)} of {len(files)} images cannot be read, first {lines[0]}; "
            f"at most {CORRUPT_FRACTION:.0%} are skipped"
        )
    rows = list(range(len(files)))
    spare = [index for index in range(readable, len(files)) if index not in failures]
    for index in sorted(failures):
        if index < readable:
            rows[index] = spare.pop()
            images[index] = images[rows[index]]
    return images[:readable], rows[:readable], lines
