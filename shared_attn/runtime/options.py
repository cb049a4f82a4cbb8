"""Keywords on a command line: `name=value` pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def parse_options(options: Sequence[str], flag: str) -> dict[str, Any]:
    """`name=value` pairs to keywords; values are read as JSON where they are, else as text.

    Raises:
        ValueError: for a pair of another form; the message names the flag.
    """
    parsed = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or not name.isidentifier():
            raise ValueError(f"{flag} {option}: expected name=value")
        try:
            parsed[name] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name] = text
    return parsed
