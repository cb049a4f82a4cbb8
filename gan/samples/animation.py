"""Films: pages one after another as GIF or MP4, which loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_attn.runtime.extras import command
from shared_attn.runtime.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

    Pages = Callable[[Sequence[int]], Iterator[Image.Image]]

PALETTE_PAGES = 12  # a GIF's 256 colours are chosen from so many pages, spread over the film
PALETTE_PIXELS = 2**17  # and from so many of their pixels: choosing takes time
QUALITY = "17"  # x264's constant rate factor: small tiles stay sharp


def check_film(path: Path) -> None:
    """See that the means to write the film are at hand.

    Raises:
        ValueError: an MP4 without PyAV.
    """
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ValueError(f"--out {path}: MP4 needs PyAV: {command('film')}; .gif does not") from error


def write_film(path: Path, pages: Pages, count: int, fps: int) -> None:
    """Write `count` pages of one size.

    Args:
        path: .gif or .mp4.
        pages: draws the pages of the given numbers, in order; it is called twice for a GIF.
        count: pages in all.
        fps: pages a second; at most 50.

    Raises:
        ValueError: an MP4 without PyAV.
        OSError: the file cannot be written; what was there is untouched.
    """
    check_film(path)
    if path.suffix.lower() == ".mp4":
        _write_mp4(path, pages(range(count)), fps)
    else:
        _write_gif(path, pages, count, fps)


def _write_gif(path: Path, pages: Pages, count: int, fps: int) -> None:
    # One palette for the whole film: one a page would flicker. No dithering, whose noise would crawl from page to page.
    from PIL import Image

    chosen = sorted({index * count // PALETTE_PAGES for index in range(PALETTE_PAGES)})
    samples = list(pages(chosen))
    scale = min(1.0, math.sqrt(PALETTE_PIXELS / (len(samples) * samples[0].width * samples[0].height)))
    width, height = (max(1, round(scale * side)) for side in samples[0].size)
    sheet = Image.new("RGB", (width, height * len(samples)))
    for number, page in enumerate(samples):
        sheet.paste(page.resize((width, height), Image.Resampling.NEAREST), (0, number * height))
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)

    ends = [round(100 * (number + 1) / fps) for number in range(count)]  # hundredths of a second, GIF's unit
    durations = [10 * (end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    frames = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages(range(count)))
    first = next(frames)
    with atomic_write(path) as file:
        first.save(file, format="GIF", save_all=True, append_images=frames, duration=durations, loop=0, optimize=False)


def _write_mp4(path: Path, pages: Iterator[Image.Image], fps: int) -> None:
    import av
    from PIL import Image

    with atomic_write(path) as file, av.open(file, "w", format="mp4") as film:
        stream: Any = None
        for page in pages:
            if stream is None:
                stream = film.add_stream("libx264", rate=fps, options={"crf": QUALITY})
                stream.width, stream.height = page.width + page.width % 2, page.height + page.height % 2  # 4:2:0
                stream.pix_fmt = "yuv420p"
            even = Image.new("RGB", (stream.width, stream.height), "white")
            even.paste(page)
            film.mux(stream.encode(av.VideoFrame.from_image(even)))
        film.mux(stream.encode())
