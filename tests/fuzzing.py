"""Feeds every reader with spoilt files: mutations of valid ones, at random or guided by coverage (atheris).

A reader may return, or refuse in one line; anything else is found: another exception, words that do not fit on a line
or do not name the file, more than HANG seconds of a processor, more than MEMORY bytes on top of what the process had.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

HANG = 2.0  # seconds of a processor
STUCK = 60.0  # seconds until a reader that does not come back is ended
MEMORY = 2**30
LONGEST = 2**16  # bytes of an input
SHARED_MEMORY = Path("/dev/shm")
WATCHED = (
    "gan",
    "pointcloud",
    "shared_attn",
    "trimesh",
    "zipfile.py",
    "tarfile.py",
    "PIL",
    "json",
    "h5py",
    "_format_impl.py",
)
COUNTERS = 2**14
REFUSALS = (ValueError, OSError)


@dataclass
class Tally:
    """What became of the inputs of one reader. found: kind -> the file that keeps an input of that kind."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: int = 0
    hangs: int = 0
    most_mb: float = 0.0
    seconds: float = 0.0
    found: dict[str, str] = field(default_factory=dict)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """A spoilt copy: cut short, bits flipped, numbers made extreme, parts doubled, removed or exchanged; inside a zip,
    a .glb, a .png or a .safetensors also so that the checksums and lengths around it stay right."""
    for unpack, pack in (_ZIP, _GLB, _SAFETENSORS, _PNG):
        if draw.random() < 0.6:
            with contextlib.suppress(Exception):
                parts = unpack(content)
                place = draw.randrange(len(parts))
                parts[place] = (parts[place][0], _spoil(parts[place][1], draw))
                return pack(parts)
    return _spoil(content, draw)


def _spoil(content: bytes, draw: random.Random) -> bytes:
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


class Trial:
    """One reader, its tally, and the place in memory where its inputs are written."""

    def __init__(self, name: str, keep: Path | None, work: Path) -> None:
        from reader_table import READERS

        self.reader, self.tally, self.keep = READERS[name], Tally(name), keep
        self.path = work / "f" / self.reader.name
        self.path.parent.mkdir(parents=True)
        self.watch: Callable[..., Any] | None = None
        self._before: int | None = None

    def attempt(self, content: bytes) -> str | None:
        """Gives the reader an input; returns what was found, None for a return or a clear refusal."""
        self.path.write_bytes(content)
        if self._before is None:  # the first input is a valid one: imports and caches are not its memory
            with contextlib.suppress(*REFUSALS):
                self._read()
            self._before = _peak()
        tally, problem, begun = self.tally, None, _processor_seconds()
        try:
            self._read()
            tally.accepted += 1
        except REFUSALS as error:
            tally.refused += 1
            if "\n" in str(error) or str(self.path.parents[1]) not in str(error):
                problem = f"unclear {_place(error)}"
        except BaseException as error:
            problem = _place(error)
        took, peak = _processor_seconds() - begun, _peak() - self._before
        tally.inputs += 1
        tally.seconds += took
        tally.most_mb = max(tally.most_mb, peak / 2**20)
        if problem is None and peak > MEMORY:
            problem, self._before = f"memory: {peak / 2**20:.0f} MB", self._before + peak
        tally.crashes += problem is not None
        if took > HANG:
            problem = f"hang: {took:.1f} s"
            tally.hangs += 1
        if problem is not None:
            self._keep(problem, content)
        return problem

    def _read(self) -> None:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            sys.settrace(self.watch)
            try:
                self.reader.read(self.path)
            finally:
                sys.settrace(None)

    def _keep(self, problem: str, content: bytes) -> None:
        kind = problem.partition(":")[0] if problem.startswith(("hang", "memory")) else problem
        if kind in self.tally.found or len(self.tally.found) >= 50:
            return
        kept = ""
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(content).hexdigest()[:12]
            path = self.keep / f"{self.tally.reader.replace(' ', '-')}-{digest}-{Path(self.reader.name).name}"
            path.write_bytes(content)
            kept = str(path)
        self.tally.found[kind] = kept


def _place(error: BaseException) -> str:
    """What was raised and where, which is the same for many inputs."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"


def try_at_random(name: str, inputs: int, *, seed: int = 0, keep: Path | None = None) -> Tally:
    """So many mutations of a reader's valid files, drawn from the seed."""
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as work:
        trial, draw = Trial(name, keep, Path(work)), random.Random(seed)
        pool = trial.reader.seeds()
        for content in pool:
            trial.attempt(content)
        while trial.tally.inputs < inputs:
            content = draw.choice(pool)
            for _ in range(draw.choice((1, 1, 1, 2, 3))):
                content = mutate(content, draw)
            trial.attempt(content)
        return trial.tally


def _processor_seconds() -> float:
    """Of this process and those it waited for; other processes on the machine do not count."""
    return sum(os.times()[:4])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(
    names: Sequence[str],
    *,
    inputs: int = 10**9,
    seconds: float = math.inf,
    seed: int = 0,
    keep: Path,
    tell: Callable[[Tally], None] = lambda _tally: None,
) -> list[Tally]:
    """Guided runs, each reader in a process of its own, until either limit.

    Args:
        names: of READERS, which say how the limits are shared out among them; none: all.
        keep: the folder of what was found.
        tell: called with each reader's tally.

    Raises:
        ImportError: atheris is not installed. ValueError: there is no such reader.
    """
    import atheris  # noqa: F401, before any work
    from reader_table import READERS

    if unknown := [name for name in names if name not in READERS]:
        raise ValueError(f"--readers {unknown[0]}: expected some of {', '.join(READERS)}")
    names = names or list(READERS)
    total, tallies = sum(READERS[name].share for name in names), []
    for name in names:
        share = READERS[name].share / total
        tallies.append(_supervise(name, max(1, math.ceil(inputs * share)), seconds * share, seed, keep))
        tell(tallies[-1])
    return tallies


def print_tally(tally: Tally) -> None:
    counts = f"{tally.inputs:,} inputs, {tally.refused:,} refused, {tally.accepted:,} accepted, {tally.crashes} crashes"
    print(f"{tally.reader}: {counts}, {tally.hangs} hangs, {tally.most_mb:.0f} MB more at most", flush=True)


def _supervise(name: str, inputs: int, seconds: float, seed: int, keep: Path) -> Tally:
    """Runs `try_guided` until the inputs are done: a process that died or is stuck is a crash or a hang, and the next
    one goes on with another seed."""
    whole, end = Tally(name), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        while whole.inputs < inputs and time.monotonic() < end:
            report, work = Path(folder, f"{seed}.json"), Path(folder, str(seed))
            work.mkdir()
            child = os.fork()
            if child == 0:
                try_guided(name, inputs - whole.inputs, end, seed, keep, report, work)
            ended = _wait(child, report)
            part = Tally(**json.loads(report.read_text())) if report.exists() else Tally(name)
            if ended:
                part.inputs += 1
                part.hangs += ended == "stuck"
                part.crashes += ended != "stuck"
                part.found[ended] = _keep_last(name, work, keep)
            _add(whole, part)
            seed += 1
    return whole


def _wait(child: int, report: Path) -> str:
    """What ended a process early; "" where it came to its end."""
    begun = time.time()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "" if status == 0 else f"the process died ({os.waitstatus_to_exitcode(status)})"
        if time.time() - max(begun, report.stat().st_mtime if report.exists() else 0) > STUCK:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "stuck"
        time.sleep(0.02)


def _keep_last(name: str, work: Path, keep: Path) -> str:
    """The input that a dead process was at."""
    trial = Trial(name, keep, work / "after")
    last = next(iter(sorted(work.glob(f"f/{trial.reader.name}"))), None)
    if last is None:
        return ""
    trial._keep("the process died", last.read_bytes())
    return trial.tally.found["the process died"]


def _add(whole: Tally, part: Tally) -> None:
    for key, value in asdict(part).items():
        if key == "found":
            whole.found |= value
        elif key == "most_mb":
            whole.most_mb = max(whole.most_mb, value)
        elif key != "reader":
            setattr(whole, key, getattr(whole, key) + value)


def try_guided(name: str, inputs: int, end: float, seed: int, keep: Path, report: Path, work: Path) -> NoReturn:
    """Inputs that atheris derives from the valid files, so many or until the clock is at `end`; writes the tally as it
    goes, and ends the process."""
    import atheris

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    trial, told = Trial(name, keep, work), 0.0
    corpus = work / "corpus"
    corpus.mkdir()
    for number, content in enumerate(trial.reader.seeds()):
        trial.attempt(content)
        (corpus / str(number)).write_bytes(content)

    def tell() -> None:
        part = report.with_suffix(".part")
        part.write_text(json.dumps(asdict(trial.tally)))
        part.replace(report)

    def attempt(content: bytes) -> None:
        nonlocal told
        trial.attempt(content)
        done = trial.tally.inputs >= inputs or time.monotonic() > end
        if done or time.monotonic() - told > 0.5:
            told = time.monotonic()
            tell()
        if done:
            os._exit(0)

    trial.watch = _report_lines()

    def change(content: bytes, longest: int, number: int) -> bytes:
        draw = random.Random(number)
        return (mutate(content, draw) if draw.random() < 0.7 else atheris.Mutate(content, longest))[:longest]

    flags = [
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        "-rss_limit_mb=0",
        "-timeout=600",
        f"-artifact_prefix={work}/",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], attempt, custom_mutator=change)
    atheris.Fuzz()
    os._exit(1)  # it does not return


def _report_lines() -> Callable[..., Any]:
    """What sys.settrace takes, telling atheris of every line that runs in the WATCHED files.

    atheris' own way is to rewrite functions. On Python 3.11 a rewritten `with` swallows exceptions.
    """
    import atheris

    counters = [atheris._reserve_counter() for _ in range(COUNTERS)]
    lines: dict[tuple[Any, int], int] = {}
    watched: dict[Any, bool] = {}

    def line(frame: Any, event: str, _argument: Any) -> Any:
        if event == "line":
            place = lines.setdefault((frame.f_code, frame.f_lineno), len(lines))
            atheris._trace_branch(counters[place % COUNTERS])
        return line

    def call(frame: Any, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code not in watched:
            watched[code] = any(part in WATCHED for part in Path(code.co_filename).parts)
        return line if watched[code] else None

    return call


def _memory_folder() -> Path | None:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
