"""The one exception whose message is meant for the user, and how a command line shows it."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class SeggymError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file or key, what was expected, what was found and what to do.
    """


def one_sentence(function: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with the sentence of a :class:`SeggymError` and exit code 2 instead of a traceback."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SeggymError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return guarded
