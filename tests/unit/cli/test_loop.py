"""The loop of every command."""

import errno
import inspect
import os
from typing import NoReturn

import pytest
import uvloop

from netsonde.cli.loop import run


async def answer() -> int:
    return 42


def test_a_coroutine_is_run_to_its_end() -> None:
    assert run(answer()) == 42


def test_without_descriptors_nothing_is_left_that_never_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(uvloop, "new_event_loop", refuse)
    main = answer()
    with pytest.raises(OSError, match="Too many open files"):
        run(main)
    assert inspect.getcoroutinestate(main) == inspect.CORO_CLOSED
