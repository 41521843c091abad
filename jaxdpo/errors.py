"""The one exception for what a user can fix, and what the operating system refuses in its words."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in the input that the user can fix.

    The message says what is wrong, where (file, line, field), the value, and the remedy. Commands
    print it alone, without a traceback, and exit with status 2; from Python it is an ordinary
    exception.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which known name was probably meant: `"; did you mean 'beta'?"`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# What a disk, its quota, its rights or a limit of the process refuse, and what to do about it.
# Other codes, such as a file that is not there, are defects where nothing explains them.
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "check the disk, or the link to it (dmesg tells more)",
    errno.ESTALE: "check the link to the file server",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that this user may write to",
    errno.EPERM: "name a folder that this user may write to",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, which have too many files open",
}
_OS_ERROR_CODE = re.compile(r"os_error_code='?(\d+)")
# SQLite says in words what the system told it by a number.
_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "unable to open database file": errno.EACCES,
    "attempt to write a readonly database": errno.EROFS,
}


def disk_failure(error: BaseException) -> str | None:
    """Returns what the disk refused, in the system's words; None if the error is another one.

    Orbax and TensorStore wrap what the system says, each in its own way: as the cause of another
    error, in a group of errors, or as a ValueError or RuntimeError that holds the code as text.
    """
    for found in _causes(error):
        if (code := _code(found)) is not None:
            return os.strerror(code)
    return None


def explained(error: BaseException) -> UserError | None:
    """Returns what the system refused as a message with a remedy; None if it refused nothing.

    >>> str(explained(OSError(errno.ENOSPC, "", "runs/a/metrics.jsonl")))
    'runs/a/metrics.jsonl: No space left on device; make room and run the same command again'
    """
    for found in _causes(error):
        code = _code(found)
        if code in _REMEDIES:
            name = getattr(found, "filename2", None) or getattr(found, "filename", None)
            place = os.fsdecode(name) if isinstance(name, str | bytes) else "a file"
            return UserError(
                f"{place}: {os.strerror(code)}; {_REMEDIES[code]} and run the same command again"
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, all errors that it was raised from or while, and the members of groups."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            waiting += found.exceptions
        waiting += [each for each in (found.__context__, found.__cause__) if each is not None]


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := _OS_ERROR_CODE.search(str(error)):
        return int(found[1])
    return _SQLITE.get(str(error))
