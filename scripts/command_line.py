"""What every script's command line shares: flags from a dataclass, presets by name, and mistakes told in one line.

Imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn, TypeVar

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

Config = TypeVar("Config")

# Seconds that other processes wait for the first to end them: after a mistake, which may be theirs alone, and after an
# interrupt, of which all know.
ALONE, AGREED = 10.0, 5.0


def parse(
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    *,
    presets: Mapping[str, Config] | None = None,
    description: str,
) -> Config:
    """Builds a configuration from the command line: defaults < preset < flags.

    Args:
        config_type: A dataclass; its fields become flags, the text beneath each its help.
        argv: Arguments without the program's name; the process's own by default.
        presets: Configurations by name; the first argument then names one.
        description: What the script does, for --help.

    A mistake ends the process with one line on standard error and exit status 2.
    """
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    program, default = Path(sys.argv[0]).name, None
    if presets is not None:
        default = _take_preset(arguments, presets, program, description)
        program = f"{program} PRESET"
    _check_flags(arguments, config_type, program)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if default is None:
                return tyro.cli(config_type, args=arguments, prog=program, description=description)
            return tyro.cli(config_type, args=arguments, prog=program, description=description, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _fail(_one_line(said.getvalue()))


def check_positive(options: object, *names: str) -> None:
    """Raises ValueError for a flag whose number, or any of whose numbers, is below 1; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a number of 1 or more, got {value}")


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """For imports inside a block: they make many objects and no garbage, so none is looked for.

    What is there afterwards is left out of later collections, and of the one at exit: together this halves the time
    that torch takes to come and to go.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run(main: Callable[[], None]) -> None:
    """Calls ``main``; a user's mistake or an interrupt becomes one line on standard error and exit status 2.

    A training that SIGTERM has stopped is saved, and ends with 75 (``shared_attn/runtime/interrupt.py``). Processes
    that torchrun started tell it once.

    The environment variable EAGAN_EAT_TRACEBACK=1 shows the whole traceback instead.
    """
    follows = _follows()
    try:
        main()
    except (ValueError, OSError, KeyboardInterrupt) as error:
        status = getattr(error, "exit_status", 2)
        if os.environ.get("EAGAN_EAT_TRACEBACK"):
            traceback.print_exc()
            raise SystemExit(status) from error
        if follows and isinstance(error, KeyboardInterrupt):
            time.sleep(AGREED)
            os._exit(status)  # at once: while Python ends, a signal would change the status
        default = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        _fail(" ".join(str(error).split()) or default, status)
    except ModuleNotFoundError as error:
        from shared_attn.runtime.extras import explain

        line = explain(error)
        if line is None or os.environ.get("EAGAN_EAT_TRACEBACK"):
            raise
        _fail(line)


def _take_preset(arguments: list[str], presets: Mapping[str, Config], program: str, description: str) -> Config:
    """Removes the preset's name from ``arguments`` and returns the preset."""
    names = ", ".join(presets)
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name in presets:
            return presets[name]
        close = get_close_matches(name, presets, n=1)
        _fail(f"unknown preset {name!r}" + (f"; did you mean {close[0]}?" if close else "") + f" (presets: {names})")
    if "-h" in arguments or "--help" in arguments:
        print(f"{description.strip()}\n\nusage: {program} PRESET [flags]\n\npresets: {names}\n")
        return next(iter(presets.values()))  # its flags and defaults follow
    _fail(f"expected a preset first: {program} PRESET [flags] (presets: {names})")


def _check_flags(arguments: Sequence[str], config_type: type, program: str) -> None:
    """Names an unknown flag and the nearest known one, before anything else that may be wrong."""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(config_type)]
    known = ["--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)]
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            close = get_close_matches(flag, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            _fail(f"unknown flag {flag}{hint} ({program} --help lists them)")


def _one_line(text: str) -> str:
    """tyro explains a mistake in a box of several lines; a script's log wants one."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = re.sub(r"\u256d.*", "", words)  # the box's upper edge with its title
    words = re.sub(r"[\u2500-\u257f]+", " ", words)
    return " ".join(words.split())


def _follows() -> bool:
    """Whether this is not the first of the processes that torchrun started.

    Processes mostly fail alike: the first one tells why, torchrun ends the others on that, and they end quietly.
    """
    follows = os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ
    if follows:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(2))
    return follows


def _fail(message: str, status: int = 2) -> NoReturn:
    if _follows():
        time.sleep(ALONE)
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)
