"""Spoilt copies of valid files."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

LONGEST = 2**16  # bytes


def mutate(content: bytes, draw: random.Random) -> bytes:
    """A spoilt copy: cut short, bits flipped, numbers made extreme, parts doubled, removed or exchanged; inside a zip,
    a .glb, a .png or a .safetensors also so that the checksums and lengths around it stay right."""
    for unpack, pack in (_ZIP, _GLB, _SAFETENSORS, _PNG):
        if draw.random() < 0.85:
            with contextlib.suppress(Exception):
                parts = unpack(content)
                place = draw.randrange(len(parts))
                parts[place] = (parts[place][0], _spoil(parts[place][1], draw))
                return pack(parts)
    return _spoil(content, draw)


def _spoil(content: bytes, draw: random.Random) -> bytes:
    if content[:1] == b"{" and draw.random() < 0.8:
        with contextlib.suppress(ValueError, RecursionError):
            return _spoil_tree(content, draw)
    spoilt = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place, kind = draw.randrange(len(spoilt) + 1), draw.randrange(8)
        if kind == 0:
            del spoilt[place:]
        elif kind == 1 and spoilt:
            spoilt[place % len(spoilt)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            spoilt[place : place + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\x01\0"))
        elif kind == 3:
            del spoilt[place : place + draw.randrange(1, 32)]
        elif kind == 4:
            other = draw.randrange(len(spoilt) + 1)
            spoilt[place:place] = spoilt[other : other + draw.randrange(1, 64)]
        elif kind == 5:
            spoilt[place : place + 1] = draw.choice(WORDS)
        elif kind == 6 and (digits := [i for i, byte in enumerate(spoilt) if 48 <= byte <= 57]):
            spoilt[digits[place % len(digits)] : digits[place % len(digits)] + 1] = draw.choice(NUMBERS)
        else:
            spoilt[place:place] = draw.randbytes(draw.randrange(1, 8))
    return bytes(spoilt[:LONGEST])


def _spoil_tree(content: bytes, draw: random.Random) -> bytes:
    """JSON with some of its values exchanged, doubled or removed."""
    tree = json.loads(content)
    for _ in range(draw.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)):
                    waiting.append(node[key])
        if not places:
            break
        node, key = draw.choice(places)
        if draw.random() < 0.15:
            del node[key]
        elif draw.random() < 0.2:
            other, name = draw.choice(places)
            node[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        elif isinstance(node[key], int) and draw.random() < 0.6:
            node[key] += draw.choice((-1, 1, 2, 100, -1000))
        else:
            node[key] = draw.choice(VALUES)
    return json.dumps(tree).encode()


VALUES = (
    -1,
    0,
    1,
    2,
    7,
    10**9,
    2**32,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "a",
    "../a",
    [],
    {},
    [0],
)
NUMBERS = (b"-1", b"0", b"999999999", b"4294967296", b"1e400", b"nan", b"99999999999999999999", b"3.5", b'"a"', b"[]")
WORDS = (b"\n", b" ", b"\0", b"{", b"[" * 200, b"}", b"nan", b"inf", b"../", b"null", b"true", b"\xff\xfe", b"\xc3\xa9")

Part = tuple[Any, bytes]
Codec = tuple[Callable[[bytes], list[Part]], Callable[[list[Part]], bytes]]


def _unzip(content: bytes) -> list[Part]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _zip(parts: list[Part]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return buffer.getvalue()


def _unglb(content: bytes) -> list[Part]:
    assert content[:4] == b"glTF"
    parts, place = [], 12
    while place < len(content):
        length, kind = struct.unpack_from("<I4s", content, place)
        parts.append((kind, content[place + 8 : place + 8 + length]))
        place += 8 + length
    return parts


def _glb(parts: list[Part]) -> bytes:
    chunks = b"".join(struct.pack("<I4s", len(content), kind) + content for kind, content in parts)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _unpack_tensors(content: bytes) -> list[Part]:
    (length,) = struct.unpack_from("<Q", content)
    assert content[8:9] == b"{" and 8 + length <= len(content)
    tree = json.loads(content[8 : 8 + length])
    described = tree["__metadata__"].pop("eagan-eat").encode()
    return [("tree", json.dumps(tree).encode()), ("described", described), ("numbers", content[8 + length :])]


def _pack_tensors(parts: list[Part]) -> bytes:
    tree, described, numbers = (content for _, content in parts)
    with contextlib.suppress(ValueError, TypeError):  # a spoilt tree goes as it is
        tree = json.dumps({**json.loads(tree), "__metadata__": {"eagan-eat": described.decode("latin1")}}).encode()
    return struct.pack("<Q", len(tree)) + tree + numbers


def _unpng(content: bytes) -> list[Part]:
    assert content[:4] == b"\x89PNG"
    parts, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        parts.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return parts


def _png(parts: list[Part]) -> bytes:
    chunks = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


_ZIP: Codec = (_unzip, _zip)
_GLB: Codec = (_unglb, _glb)
_SAFETENSORS: Codec = (_unpack_tensors, _pack_tensors)
_PNG: Codec = (_unpng, _png)
