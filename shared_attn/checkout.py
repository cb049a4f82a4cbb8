"""Importing the code of an original from a checkout at the user's path, as it is, without a trace afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

__all__ = ["importable"]


@contextmanager
def importable(folder: Path, packages: Sequence[str], stand_ins: Mapping[str, ModuleType]) -> Iterator[None]:
    """While this lasts, `import` finds the checkout's modules, which keep what they imported; then no one finds them.

    Args:
        folder: where the modules lie. Nothing is written there.
        packages: top-level names that are imported from there; modules of these names that are loaded already are
            hidden meanwhile.
        stand_ins: modules by full name that take the place of what the checkout would import.
    """

    def ours(name: str) -> bool:
        return name.partition(".")[0] in packages or name in stand_ins

    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if ours(name)}
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder.resolve()))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(folder.resolve()))
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(hidden)
