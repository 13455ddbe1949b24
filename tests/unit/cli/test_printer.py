"""Writing beside the event loop."""

import asyncio
import threading

import pytest

from netsonde.cli import printer as printer_module
from netsonde.cli.printer import Printer


async def test_a_write_is_waited_for() -> None:
    lines: list[str] = []
    await Printer().write(lambda: lines.append("x"))
    assert lines == ["x"]


async def test_a_reader_that_left_is_told() -> None:
    def write() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await Printer().write(write)


async def test_a_stuck_write_holds_up_neither_the_loop_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    monkeypatch.setattr(printer_module, "STUCK_AFTER_S", 0.0)
    read, printer = threading.Event(), Printer()

    def write() -> None:
        read.wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(printer.write(write))
        await asyncio.sleep(0)  # the loop goes on
        task.cancel()
    printer.leave(7)
    assert left == [7]
    read.set()


def test_an_idle_printer_leaves_the_end_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    Printer().leave(7)
    assert left == []
