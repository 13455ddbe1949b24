"""Exit codes of every command, and which one an error ends with."""

from enum import IntEnum

from netsonde.errors import ConfigError, ControlPlaneError, ErrorCode, RequestError


class Exit(IntEnum):
    """What a command's exit code says (docs/commands.md)."""

    OK = 0
    TARGET_FAILED = 1  # measured, and some target was not reached; doctor: something is missing
    USAGE = 2  # what was asked for makes no sense
    CANNOT = 3  # could not measure, or could not do what was asked
    BUG = 70  # sysexits.h EX_SOFTWARE
    INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
    BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell says it


_BAD_INPUT = frozenset(
    {
        ErrorCode.VALIDATION,
        ErrorCode.MALFORMED_JSON,
        ErrorCode.NOT_FOUND,
        ErrorCode.TARGET_DENIED,
        ErrorCode.CONFIG_INVALID,
        ErrorCode.TOO_LARGE,
    }
)


def exit_for(error: Exception) -> Exit:
    """Return the exit code of an error that reached the top."""
    if isinstance(error, ConfigError):
        # A setting that the system refuses may be right: a port in use, a file out of reach.
        return Exit.CANNOT if isinstance(error.__cause__, OSError) else Exit.USAGE
    if isinstance(error, (RequestError, ControlPlaneError)):
        return Exit.USAGE if error.code in _BAD_INPUT else Exit.CANNOT
    return Exit.CANNOT


def first_leaf(error: BaseException) -> BaseException:
    """Return the first single exception of a group, or the exception itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
