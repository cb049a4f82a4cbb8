"""One encoded image to S x S pixels: the rules, the same for every source of images.

Legend: H W pixels, S image size.

- An image is turned as its EXIF orientation says. Of an animation the first frame is taken.
- Grey becomes three equal channels; palettes, CMYK and YCbCr become RGB; 16 bits a channel keep their upper 8.
- Transparent pixels are laid over white, in proportion to their opacity.
- Then, unless the image is S x S, the centred square of its shorter side is cut out and resized to S x S (Lanczos).
- An image that cannot be read by these rules is damaged: an unknown or broken format, a file cut short, floating-point
  pixels, more than MAX_PIXELS, more than MAX_FILE_BYTES. It is listed with the reason and skipped; where more than one
  image in twenty (CORRUPT_FRACTION) is damaged, the whole set is refused.
"""

from __future__ import annotations

import errno
import functools
import io
import struct
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np

from shared_attn.runtime.messages import one_line

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20
CORRUPT_FRACTION = 0.05
# Which of PIL's decoders may see a file, whatever its name: one of the others, EPS, would start another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")
# What PIL, zipfile, h5py and pyarrow raise for damaged content.
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def decode_image(content: bytes, size: int) -> np.ndarray:
    """One image file's bytes to (S, S, 3) uint8, by the rules above.

    Raises:
        ValueError, OSError or another of DAMAGE: for content that is no image, or is too large to be safe.
    """
    from PIL import Image, ImageOps

    with open_image(content) as opened:
        try:
            image: Image.Image = ImageOps.exif_transpose(opened)
        except Image.DecompressionBombError as error:  # of a part that is larger than the whole
            raise ValueError(str(error)) from error
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range nothing tells")
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip instead of scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _fit(image.convert("RGB"), size)


@functools.cache
def _silence_bomb_warning() -> None:
    """Once a process: what the warning is about is refused."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(content: bytes) -> Any:
    """PIL's image of a file's bytes: its header is read, and its pixels are not.

    Raises:
        ValueError, OSError or another of DAMAGE: for what is none of FORMATS, or is too large to be safe.
    """
    from PIL import Image, UnidentifiedImageError

    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{len(content)} bytes, at most {MAX_FILE_BYTES} are read")
    _silence_bomb_warning()
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error  # PIL's message is an address in memory
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read")
    return opened


def fit_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """Decoded pixels (H, W, 3) uint8 to (S, S, 3), cut and resized by the rules above."""
    from PIL import Image

    if pixels.shape[:2] == (size, size):
        return pixels
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)), size)


def _fit(image: Any, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def is_damage(error: Exception) -> bool:
    """Whether an error says that the content is damaged, not that the machine cannot read just now.

    A file that has vanished, too many open files or a failing disk end the job: skipping would hide them, and the
    order of the images would depend on them.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR)
    return isinstance(error, DAMAGE)


def give_reason(error: Exception) -> str:
    """An error's words on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def check_damage(source: object, damaged: list[str], total: int) -> None:
    """Refuses a set of `total` images of which too many are damaged; `damaged` holds a line for each.

    Raises:
        ValueError: above CORRUPT_FRACTION, though one damaged image is always skipped, and where none is readable.
    """
    if len(damaged) > max(1, CORRUPT_FRACTION * total) or len(damaged) >= total:
        raise ValueError(
            f"--data {source}: {len(damaged)} of {total} images cannot be read, first {damaged[0]}; "
            f"at most {CORRUPT_FRACTION:.0%} are skipped"
        )
