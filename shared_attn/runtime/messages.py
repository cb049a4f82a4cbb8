"""An error's words on one line, as every message of these packages is. Imports nothing heavy."""

from __future__ import annotations


def one_line(error: object, *, at_most: int | None = None) -> str:
    """All words of an error, or its kind where it says nothing; `at_most` so many characters."""
    return " ".join(str(error).split())[:at_most] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error whose further ones are of no use to a user, as libraries write them."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
