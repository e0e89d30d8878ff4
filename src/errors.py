"""Errors that users see: one clear line, and the exit code that says whose mistake it was.

Imports no framework.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAULT = 1  # something broke
EXIT_USER = 2  # the command, a file or a value was wrong


class UserError(Exception):
    """A user's mistake; the message names the file, the value and what would be right."""

    exit_code = EXIT_USER


class Fault(Exception):
    """Something that went wrong at run time though the command was right (NaN loss, full disk)."""

    exit_code = EXIT_FAULT


def nearest(word: str, known: Iterable[str]) -> str:
    """End of a message: the known word closest to an unknown one, or nothing.

    For example ", did you mean 'blocks'?".
    """
    # 0.5, below difflib's 0.6, as flags and keys are short.
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
