"""What a mesh file claims about itself, checked against its bytes before a reader makes room for it."""

from __future__ import annotations

import struct
from typing import Any

from pointcloud.files.gltf_claims import check_gltf

MOST_BYTES = 2 * 2**30  # of a mesh file; it is read as a whole
MOST_LINES = 2**26  # of text, each of which becomes an object
MOST_HEADER = 2**20  # bytes before the first number
PLY_SIZES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
PLY_SIZES |= {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8}
STL_HEADER, STL_FACE = 84, 50


def check_claims(suffix: str, content: bytes) -> bytes:
    """The content of a mesh file, of a format by its suffix, which a reader may believe; text is made plain ASCII.

    Raises:
        ValueError: it claims more points or faces than it has bytes for, names other files, or is too long; in one line
            without the path.
    """
    if suffix in (".glb", ".gltf"):
        check_gltf(content, binary=suffix == ".glb")
        return content
    if suffix == ".stl" and _is_binary_stl(content):
        return content
    if suffix == ".ply" and _check_ply(content):
        return content
    if content.count(b"\n") + content.count(b"\r") > MOST_LINES:
        raise ValueError(f"has more than {MOST_LINES:,} lines")
    if suffix == ".off":
        _check_off(content)
    # Names may be in any script; what counts is ASCII. Else a reader would guess at the encoding.
    return content if content.isascii() else content.decode("ascii", "replace").encode("ascii", "replace")


def check_length(length: int) -> None:
    """Refuses a file of so many bytes before it is read."""
    if length > MOST_BYTES:
        raise ValueError(f"{length / 1e9:.1f} GB, but meshes of at most {MOST_BYTES / 1e9:.1f} GB are read")


def _check_off(content: bytes) -> None:
    """OFF, then points, faces and edges, then a line each of at least 6 characters."""
    lines = (line.partition(b"#")[0].split() for line in content[3 : 3 + MOST_HEADER].splitlines())
    counts = next((words for words in lines if words), [])[:2]
    if len(counts) < 2 or not all(word.isdigit() and len(word) < 16 for word in counts):
        raise ValueError("its first numbers are not those of its points and faces")
    points, faces = map(int, counts)
    if 6 * points + 2 * faces > len(content):
        raise ValueError(f"claims {points:,} points and {faces:,} faces, which {len(content):,} bytes cannot hold")


def _is_binary_stl(content: bytes) -> bool:
    if len(content) >= STL_HEADER:
        (faces,) = struct.unpack_from("<I", content, STL_HEADER - 4)
        held, rest = divmod(len(content) - STL_HEADER, STL_FACE)
        if faces == held and not rest:
            return True
        if not content.lstrip()[:5].lower() == b"solid":
            raise ValueError(f"claims {faces:,} faces, but has room for {held:,}")
    return False


def _check_ply(content: bytes) -> bool:
    """Whether it is binary; refuses counts of rows that its bytes cannot hold."""
    end = content.find(b"end_header", 0, MOST_HEADER)
    if not content.startswith(b"ply") or end < 0:
        raise ValueError("has no PLY header")
    lines = [line.split() for line in content[:end].decode("ascii", "replace").splitlines()]
    binary = len(lines) < 2 or "ascii" not in lines[1]
    elements: list[list[Any]] = []
    for words in lines:
        if words[:1] == ["element"]:
            if len(words) != 3 or not words[2].isdigit() or len(words[2]) > 15:
                raise ValueError(f"its header has a line {' '.join(words)[:60]!r}, expected element, name and number")
            elements.append([words[1][:20], int(words[2]), 0])
        elif words[:1] == ["property"] and elements and len(words) > 2:
            kind = words[2 if words[1] == "list" else 1]
            elements[-1][2] += PLY_SIZES.get(kind, 1) if binary else 2  # a digit and a blank
    held = len(content) - end
    for name, count, row in elements:
        if count * max(1, row) > held:
            raise ValueError(f"claims {count:,} rows of {name}, which the {held:,} bytes after its header cannot hold")
    return binary
