"""Downloads against a server on this machine: resumed, checked, mirrored, and explained where they fail."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pointcloud.releases.archives import ARCHIVES
from shared_attn.runtime import download
from shared_attn.runtime.download import Archive, fetch, find_fault


@dataclass
class Server:
    """What is served under which path, how, and what was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # bytes sent an answer before the connection breaks
    without_ranges: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if wanted and self.path not in state.without_ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + state.cut.get(self.path, len(content))])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


def make_zip(content: bytes = b"") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, 60_000, dtype=np.uint8).tobytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("folder/a.bin", noise)
        file.writestr("folder/b.bin", b"b" + content)
    return buffer.getvalue()


CONTENT = make_zip()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def archive(server: Server, *paths: str, sha256: str | None = SHA256) -> Archive:
    return Archive("a.zip", "a", tuple(server.address + path for path in paths), sha256)


def test_a_download_is_whole_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = CONTENT
    path = fetch(archive(server, "/a.zip"), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    fetch(archive(server, "/a.zip"), path.parent)
    assert len(server.asked) == 1  # what lies there is not fetched again


def test_a_partial_file_is_resumed_from_where_it_ends(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = CONTENT
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1234])
    assert fetch(archive(server, "/a.zip"), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/a.zip", "bytes=1234-")]


def test_a_broken_connection_goes_on_while_it_gets_further(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"], server.cut["/a.zip"] = CONTENT, 20_000
    assert fetch(archive(server, "/a.zip"), tmp_path).read_bytes() == CONTENT
    starts = [0 if wanted is None else int(wanted[6:-1]) for _, wanted in server.asked]
    assert starts == [0, 20_000, 40_000, 60_000]


def test_the_next_mirror_goes_on_where_the_last_one_died(server: Server, tmp_path: Path) -> None:
    server.files |= {"/first.zip": CONTENT, "/second.zip": CONTENT}
    server.cut["/first.zip"] = 10_000
    server.without_ranges.add("/first.zip")  # so it never gets further than 10,000 bytes
    path = fetch(archive(server, "/missing.zip", "/first.zip", "/second.zip"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == ("/second.zip", "bytes=10000-")


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = CONTENT
    server.without_ranges.add("/a.zip")
    (tmp_path / "a.zip.part").write_bytes(b"x" * 500)
    assert fetch(archive(server, "/a.zip"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 500, CONTENT + b"more", b"x" * (len(CONTENT) + 9)])
def test_a_partial_file_of_something_else_is_found_out(server: Server, tmp_path: Path, left: bytes) -> None:
    """Also one that is longer than the file, for which a server has no bytes left (416)."""
    server.files["/a.zip"] = CONTENT
    (tmp_path / "a.zip.part").write_bytes(left)
    assert fetch(archive(server, "/a.zip"), tmp_path).read_bytes() == CONTENT


def test_a_whole_partial_file_is_only_checked(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = CONTENT
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert fetch(archive(server, "/a.zip"), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/a.zip", f"bytes={len(CONTENT)}-")]


def test_a_wrong_file_never_gets_the_name_and_the_next_mirror_serves(server: Server, tmp_path: Path) -> None:
    server.files |= {"/login": b"<html>please log in</html>", "/a.zip": CONTENT}
    assert fetch(archive(server, "/login", "/a.zip"), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/a.zip", None)  # nothing of the page was kept


def test_when_all_fail_the_message_says_what_to_put_where(server: Server, tmp_path: Path) -> None:
    server.files |= {"/page": b"<html></html>", "/short.zip": CONTENT}
    server.cut["/short.zip"] = 5_000
    server.without_ranges.add("/short.zip")
    closed = replace(archive(server, "/gone.zip", "/page", "/short.zip"))
    urls = (*closed.urls, "http://127.0.0.1:1/a.zip", "nonsense")
    with pytest.raises(ValueError) as caught:
        fetch(replace(closed, urls=urls), tmp_path)
    said = str(caught.value)
    assert "\n" not in said and f"put a.zip, or its unpacked folder a, into {tmp_path}" in said
    assert all(url in said for url in urls)
    for part in ("HTTP 404", f"expected {SHA256}", "broke off after 5,000 of", "refused", "unknown url"):
        assert part in said
    assert "5,000 bytes are kept in a.zip.part" in said and (tmp_path / "a.zip.part").stat().st_size == 5_000
    assert not (tmp_path / "a.zip").exists()


def test_without_a_checksum_the_zip_itself_is_checked(server: Server, tmp_path: Path) -> None:
    spoilt = bytearray(CONTENT)
    spoilt[30_000] ^= 1
    path = tmp_path / "a.zip"
    bare = archive(server, sha256=None)
    for content, said in ((bytes(spoilt), "a.bin in it is damaged"), (b"text", "no readable zip"), (CONTENT, None)):
        path.write_bytes(content)
        fault = find_fault(path, bare)
        assert fault is None if said is None else said in (fault or "")
    member = {"b.bin": hashlib.md5(b"b").hexdigest()}
    assert find_fault(path, replace(bare, members=member)) is None
    path.write_bytes(make_zip(b"other"))
    assert "the MD5 of b.bin in it is" in (find_fault(path, replace(bare, members=member)) or "")
    assert find_fault(path, replace(bare, members={"c.bin": ""})) == "it holds no c.bin"


def test_a_full_disk_is_not_blamed_on_the_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.zip"] = CONTENT
    with pytest.raises(OSError, match=r"file: cannot be made"):
        (tmp_path / "file").write_text("")
        fetch(archive(server, "/a.zip"), tmp_path / "file")
    (tmp_path / "a.zip.part").mkdir()  # a name that cannot be opened for writing, whoever runs the test
    with pytest.raises(OSError, match=r"a\.zip\.part: cannot be written"):
        fetch(archive(server, "/a.zip", "/a.zip"), tmp_path)
    assert len(server.asked) == 1
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent,  # accepts, and never answers
        pytest.raises(ValueError, match="timed out"),
    ):
        fetch(replace(archive(server), urls=(f"http://127.0.0.1:{silent.server_address[1]}/a",)), tmp_path / "b")


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_table_of_archives_is_sound(name: str) -> None:
    for entry in ARCHIVES[name].values():
        assert len(entry.urls) == len(set(entry.urls)) >= 2
        assert all(re.fullmatch(r"https?://\S+\.zip", url) for url in entry.urls)
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert all(re.fullmatch("[0-9a-f]{32}", value) for value in entry.members.values())
        assert entry.shapes[0] > entry.shapes[1] > 0
