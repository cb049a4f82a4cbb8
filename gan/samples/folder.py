"""Samples as single PNG files, thousands of them: a folder `class/seed000123.png` that is itself a data set of images.

A folder can be written in several goes: files that are there and whole are kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan.generator import Generator
from gan.sampling import BATCH, draw_images, draw_latents
from shared_attn.runtime.files import atomic_write

DESCRIPTION = "samples.json"
PNG_END = b"IEND\xaeB`\x82"
WRITERS = 4  # threads: encoding a PNG leaves the others free
COMPRESSION = 1  # zlib's level: at 32 pixels files of level 6 are 1 % smaller


def name_folders(class_names: Sequence[str]) -> list[str]:
    """A folder's name for each class: safe on every system, none hidden, no two alike."""
    taken: set[str] = set()
    folders = []
    for number, name in enumerate(class_names):
        safe = re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name).strip(" .")[:100] or "class"
        while safe.casefold() in taken:
            safe = f"{safe}_{number}"
        taken.add(safe.casefold())
        folders.append(safe)
    return folders


def name_file(seed: int) -> str:
    return f"seed{seed:06d}.png"


def write_samples(
    folder: Path,
    generator: Generator,
    samples: Sequence[tuple[int, int]],
    *,
    truncation: float | None = None,
    origin: Mapping[str, Any],
) -> tuple[int, int]:
    """Write the samples that the folder lacks, with a progress bar.

    Args:
        folder: made where it is missing; otherwise of an earlier call with the same `origin`, or empty.
        generator: of `gan.load_generator`.
        samples: (seed, class number) of each image.
        truncation: see `squeeze_latents`.
        origin: what the images follow from besides seed and class; kept in the folder's samples.json.

    Returns:
        The numbers of images written and kept.

    Raises:
        ValueError: the folder holds something else, or samples of another origin.
        OSError: a file cannot be written; those before it are whole.
    """
    from tqdm import tqdm

    _claim(folder, origin)
    names = name_folders(generator.class_names)
    used = sorted({label for _, label in samples})
    for label in used:
        _make(folder / names[label])
    whole = {label: _list_whole(folder / names[label]) for label in used}
    wanted = list(dict.fromkeys(samples))
    missing = [(seed, label) for seed, label in wanted if name_file(seed) not in whole[label]]
    kept = len(wanted) - len(missing)
    bar = tqdm(total=len(wanted), initial=kept, unit="img", desc="sampling", dynamic_ncols=True)
    with bar, _writers() as submit:
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            z = draw_latents([seed for seed, _ in part], generator.latent_dim, truncation)
            labels = torch.tensor([label for _, label in part])
            images = torch.cat(list(draw_images(generator, z, labels))).cpu()
            submit([(folder / names[label] / name_file(seed)) for seed, label in part], images)
            bar.update(len(part))
    return len(missing), kept


def write_png(path: Path, image: Tensor) -> None:
    """Write (3, H, W) uint8 as PNG under a temporary name and rename it.

    Unlike `atomic_write` it does not wait for the disk, thousands of times; a file that a power cut left torn is known
    by its end.
    """
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(content, "PNG", compress_level=COMPRESSION)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


@contextlib.contextmanager
def _writers() -> Iterator[Any]:
    """A function (paths, images) that writes in threads; it waits for what was given long before, to bound memory."""
    waiting: list[list[Future[None]]] = []

    def submit(paths: list[Path], images: Tensor) -> None:
        waiting.append([pool.submit(write_png, path, image) for path, image in zip(paths, images, strict=True)])
        if len(waiting) > 2:
            finish(waiting.pop(0))

    def finish(futures: list[Future[None]]) -> None:
        for future in futures:
            future.result()

    with ThreadPoolExecutor(WRITERS) as pool:
        try:
            yield submit
            for futures in waiting:
                finish(futures)
        except OSError:  # after an interrupt, though, what is drawn is still written
            pool.shutdown(cancel_futures=True)
            raise


def _claim(folder: Path, origin: Mapping[str, Any]) -> None:
    """See that the folder is empty or holds samples of the same origin, and write that into it."""
    path = folder / DESCRIPTION
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = None
        if not isinstance(earlier, dict):
            raise ValueError(f"{path}: cannot be read, expected what describes the folder's samples")
        differences = [name for name in sorted({*earlier, *origin}) if earlier.get(name) != origin.get(name)]
        if differences:
            told = ", ".join(f"{name} {earlier.get(name)} (now {origin.get(name)})" for name in differences)
            raise ValueError(f"--out {folder}: holds samples drawn otherwise: {told}; expected another folder")
        return
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise ValueError(f"--out {folder}: holds other files and no {DESCRIPTION}; expected a new or an empty folder")
    _make(folder)
    with atomic_write(path, "w") as file:
        json.dump(dict(origin), file, indent=1)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> OSError:
    return type(error)(f"--out {path}: cannot be written ({error.strerror})")


def _list_whole(folder: Path) -> set[str]:
    """Names of the PNG files that end as they should."""
    names = set()
    for entry in os.scandir(folder):
        if entry.name.startswith("seed") and entry.name.endswith(".png"):
            with open(entry.path, "rb") as file:
                file.seek(-min(entry.stat().st_size, len(PNG_END)), os.SEEK_END)
                if file.read() == PNG_END:
                    names.add(entry.name)
    return names
