"""Append-only logs of JSON lines, in the run's directory; each line is one write."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Journal:
    """Appends records to a file. A line that a killed writer left torn is cut off at opening."""

    def __init__(self, path: Path) -> None:
        self._encoder = msgspec.json.Encoder()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        whole = _whole_bytes(self._file, size)
        if whole < size:
            os.ftruncate(self._file, whole)

    def write(self, record: object) -> None:
        """Append one record; returns when the kernel has it."""
        line = self._encoder.encode(record) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("a journal's line was written in part: is the disk full?")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path, kind: type[T]) -> Iterator[T]:
    """Yield a file's records; a torn last line is none, a missing file has none."""
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decoder.decode(line)


def _whole_bytes(file: int, size: int) -> int:
    """Return where the last whole line ends."""
    end = size
    while end > 0:
        start = max(0, end - 65_536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
