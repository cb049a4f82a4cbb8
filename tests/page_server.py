"""The interactive page with small networks of random weights, served in a process of its own that may reach no other
machine, for the tests of the page."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from small_models import write_small_models

from gan.generator import Generator
from gan.sampling import KIND, finish_generator
from shared_attn.runtime.weights import save_weights

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["cat", "dog", "ship"]
MODEL = {"image_size": 32, "num_classes": 3, "width": 4, "attention": "external"}
GUARDED = """
import runpy, sys
LOCAL = ("127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost", None, "")
def look(event, arguments):
    place = {"socket.connect": lambda: arguments[1], "socket.getaddrinfo": lambda: arguments[:1]}.get(event)
    place = place() if place else None
    if isinstance(place, tuple) and place[0] not in LOCAL:
        print("OUTSIDE", event, place, file=sys.stderr, flush=True)
        raise OSError("this test has no network")
sys.addaudithook(look)
sys.path.insert(0, "scripts")
sys.argv[0] = "scripts/app.py"
runpy.run_path("scripts/app.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Served:
    """url: where. weights: the networks' folder. temporary: the server's. log: what it said on standard error."""

    url: str
    weights: Path
    temporary: Path
    log: Path


def write_page_models(folder: Path) -> Path:
    """The small point networks and generator.safetensors."""
    torch.manual_seed(1)
    state = finish_generator(Generator(**MODEL), MODEL, seed=0).state_dict()
    header = {"kind": KIND, "model": MODEL, "class_names": CLASSES, "data": {}}
    save_weights(folder / "generator.safetensors", state, header)
    return write_small_models(folder)


@contextmanager
def serve_page(folder: Path, *arguments: str) -> Iterator[Served]:
    """Serves until the block ends; then asks that the server has ended well and has left nothing behind."""
    weights, temporary, log = folder / "weights", folder / "temporary", folder / "log"
    weights.mkdir()
    temporary.mkdir()
    write_page_models(weights)
    names = {"--gan": "generator", "--classifier": "classifier", "--segmenter": "segmenter"}
    flags = [word for flag, name in names.items() for word in (flag, str(weights / f"{name}.safetensors"))]
    command = [sys.executable, "-c", GUARDED, *flags, *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as errors, (folder / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=errors, cwd=ROOT, env=environment)
    try:
        yield Served(_wait(process, folder / "said", log), weights, temporary, log)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert not list(temporary.glob("eagan-eat-page-*"))
        assert "OUTSIDE" not in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], said: Path, log: Path) -> str:
    for _ in range(1200):
        words = said.read_text().split()
        if "at" in words and said.read_text().endswith("\n"):
            return words[words.index("at") + 1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no page after two minutes: {log.read_text()}")
