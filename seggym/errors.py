"""The one exception whose message is meant for the user, and how a command line shows it."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


# What the system says when a disk takes no more, whoever was writing.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class SeggymError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file or key, what was expected, what was found and what to do.
    """


def one_sentence(function: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with the sentence of a :class:`SeggymError` and exit code 2 instead of a traceback.

    A disk that takes no more is the user's to mend as well, wherever it shows.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SeggymError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            # Logs are appended to by libraries (TensorBoard) rather than written through `seggym.files`.
            if error.errno not in _DISK:
                raise
            print(
                f"error: cannot write {error.filename or 'a log file'}: {error.strerror}; what was saved before is "
                "unchanged: free some space or choose another folder, then run the same command again",
                file=sys.stderr,
            )
        sys.exit(2)

    return guarded
