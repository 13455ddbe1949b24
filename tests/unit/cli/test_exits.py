"""Which exit code an error ends with."""

import pytest

from netsonde.cli.exits import Exit, exit_for, first_leaf
from netsonde.errors import ConfigError, ErrorCode, RequestError


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("listen must be host:port"), Exit.USAGE),
        (caused(ConfigError("listen is taken"), OSError(98, "in use")), Exit.CANNOT),
        (RequestError(ErrorCode.VALIDATION, "x"), Exit.USAGE),
        (RequestError(ErrorCode.STORAGE_FULL, "x"), Exit.CANNOT),
        (OSError(24, "Too many open files"), Exit.CANNOT),
    ],
)
def test_exit_for(error: Exception, code: Exit) -> None:
    assert exit_for(error) == code


def test_the_first_leaf_of_nested_groups() -> None:
    inner = ValueError("inner")
    nested = ExceptionGroup("a", [ExceptionGroup("b", [inner, OSError()]), KeyError()])
    assert first_leaf(nested) is inner
    assert first_leaf(inner) is inner
