"""Downloads an archive from the first of its addresses that serves it whole, and goes on where a download broke off.

What came so far lies in NAME.part. NAME appears only when the file is whole and its checksum is right.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shared_attn.runtime.archives import ZIP_ERRORS, open_zip
from shared_attn.runtime.messages import one_line
from shared_attn.runtime.records import hash_file

TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20
MOST_BYTES = 2**38  # of a download; ImageNet has 2**37


@dataclass(frozen=True)
class Archive:
    """One download.

    file, folder: its name, and what it is called unpacked. urls: tried in turn; all serve the same bytes, or, where
    `members` are listed, the same files inside a zip. sha256: of the file; None: none was published. members: file
    name -> MD5 of files in the zip, wherever they lie.
    """

    file: str
    folder: str
    urls: tuple[str, ...]
    sha256: str | None = None
    members: Mapping[str, str] = field(default_factory=dict)


class BrokenOff(Exception):
    """The connection ended before the file did."""


class Unusable(Exception):
    """This address does not serve the file."""


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`, downloaded where it is not there yet.

    Raises:
        ValueError: no address served it; the message says which file, from where, why not, and where to put it.
        OSError: it cannot be written.
    """
    target = folder / archive.file
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{folder}: cannot be made ({error.strerror})") from error
    failures = []
    for url in archive.urls:
        print(f"downloading {url}", file=sys.stderr)
        try:
            _obtain(url, archive, part)
        except (Unusable, BrokenOff) as error:
            failures.append(f"{url} ({error})")
            continue
        part.replace(target)
        return target
    kept = f"; {_size(part):,} bytes are kept in {part.name} and the next attempt goes on from there"
    raise ValueError(
        f"{archive.file} could not be downloaded from {'; '.join(failures)}; put {archive.file}, or its unpacked "
        f"folder {archive.folder}, into {folder} and run the command again" + (kept if _size(part) else "")
    )


def find_fault(path: Path, archive: Archive) -> str | None:
    """What is wrong with a downloaded file; None where it is what the table says, or a sound zip where that is silent.

    The CRC of everything in a zip is read only where no checksum of the whole is known.
    """
    if archive.sha256 is not None:
        found = hash_file(path)
        return None if found == archive.sha256 else f"its SHA-256 is {found}, expected {archive.sha256}"
    try:
        with open_zip(path) as content:
            damaged = content.testzip()
            if damaged is not None:
                return f"{damaged} in it is damaged"
            return _find_wrong_member(content, archive)
    except ZIP_ERRORS as error:
        return f"what came is no readable zip: {error}"


def _find_wrong_member(content: zipfile.ZipFile, archive: Archive) -> str | None:
    names = {PurePosixPath(name).name: name for name in content.namelist() if not name.startswith("__MACOSX")}
    for name, expected in archive.members.items():
        if name not in names:
            return f"it holds no {name}"
        digest = hashlib.md5(usedforsecurity=False)
        with content.open(names[name]) as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != expected:
            return f"the MD5 of {name} in it is {digest.hexdigest()}, expected {expected}"
    return None


def _obtain(url: str, archive: Archive, part: Path) -> None:
    """Leaves the whole and right file in `part`. One that was resumed and turns out wrong is fetched once more anew."""
    resumed = _size(part) > 0
    _transfer(url, part)
    fault = find_fault(part, archive)
    if fault and resumed:
        part.unlink()
        _transfer(url, part)
        fault = find_fault(part, archive)
    if fault:
        part.unlink()
        raise Unusable(fault)
    if archive.sha256 is None and not archive.members:
        print(f"no checksum is published for {url}; what came has the SHA-256 {hash_file(part)}", file=sys.stderr)


def _transfer(url: str, part: Path) -> None:
    """Connects again and again for as long as each connection gets further than the last."""
    furthest = _size(part)
    while True:
        try:
            _receive(url, part)
            return
        except BrokenOff:
            if _size(part) <= furthest:
                raise
            furthest = _size(part)


def _receive(url: str, part: Path) -> None:
    """One connection: asks for what is missing behind `part`, and appends it; begins anew where that is not offered."""
    have = _size(part)
    headers = {"User-Agent": "eagan-eat", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response: Any = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies behind it: it is whole, or not this file; the checksum tells
            return
        raise Unusable(f"HTTP {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise Unusable(_words(error)) from error
    with response:
        start, total = _extent(response, have)
        if (total or 0) > MOST_BYTES:
            raise Unusable(f"it has {total:,} bytes, at most {MOST_BYTES:,} are fetched")
        _append(response, part, start, total, PurePosixPath(url).name)
    if total is not None and _size(part) < total:
        raise BrokenOff(f"broke off after {_size(part):,} of {total:,} bytes")


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is, where the server says so."""
    if getattr(response, "status", None) == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise Unusable(f"answered a request for bytes from {have} with {response.headers.get('Content-Range')!r}")
        return have, None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdigit() else None


def _append(response: Any, part: Path, start: int, total: int | None, name: str) -> None:
    from tqdm import tqdm

    try:
        file = part.open("ab" if start else "wb")
    except OSError as error:
        raise type(error)(f"{part}: cannot be written ({error.strerror})") from error
    with file, tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            try:
                block = response.read(BLOCK)
            except http.client.IncompleteRead as error:
                block = error.partial
            except (OSError, http.client.HTTPException) as error:
                raise BrokenOff(f"broke off after {file.tell():,} bytes: {_words(error)}") from error
            if not block:
                return
            try:
                file.write(block)
            except OSError as error:
                raise type(error)(f"{part}: cannot be written ({error.strerror}); what came is kept") from error
            bar.update(len(block))
            if file.tell() > MOST_BYTES:
                raise Unusable(f"it goes on after {MOST_BYTES:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _words(error: BaseException) -> str:
    return one_line(getattr(error, "reason", None) or error)
