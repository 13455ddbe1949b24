"""Tasks as a file holds them: a JSON array, or one JSON object a line, read as it comes."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from netsonde import wire
from netsonde.cli.inputs import Input, read_chunk
from netsonde.control_plane.uploading import PART_BYTES, PART_LINES
from netsonde.errors import ConfigError, ErrorCode, RequestError

ARRAY_MAX_BYTES = 256 << 20  # an array is read whole; lines have no such limit
BLANKS = b" \t\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task's text, and the number of its line or item, from 1."""

    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class LongLine:
    """A line that is too long to be sent."""

    number: int

    @property
    def answer(self) -> wire.LineAnswer:
        """What the server would say of it."""
        message = f"a line may have {wire.LINE_MAX_BYTES} bytes"
        return wire.LineAnswer(self.number, None, ErrorCode.TOO_LARGE, message)


Read = TaskLine | LongLine


async def tasks_in(source: Input) -> AsyncGenerator[list[Read], None]:
    """Yield tasks as they come, in parts that one request takes.

    Raises:
        ConfigError: it cannot be read on, or is an array that is none.
    """
    start = b""
    while not start.lstrip(BLANKS) and (chunk := await read_chunk(source)):
        start += chunk
        if len(start) > wire.LINE_MAX_BYTES and not start.strip(BLANKS):
            raise ConfigError(f"{source.what} {source.path} begins with too many blanks")
    start = start.removeprefix(BYTE_ORDER_MARK)
    if start.lstrip(BLANKS).startswith(b"["):
        for part in _parts(await _array(source, start)):
            yield part
        return
    cutter = _Cutter()
    read: list[Read] = cutter.feed(start)
    while True:
        for part in _parts(read):
            yield part
        chunk = await read_chunk(source)
        if not chunk:
            break
        read = cutter.feed(chunk)
    if last := cutter.feed(b"\n"):
        yield last


class _Cutter:
    """Cuts chunks into lines with their numbers; blank ones are counted and left out."""

    def __init__(self) -> None:
        self._tail = b""
        self._number = 0
        self._is_long = False  # the tail belongs to a line whose beginning was dropped

    def feed(self, chunk: bytes) -> list[Read]:
        """Return what chunk completes."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        read: list[Read] = []
        for line in lines:
            self._number += 1
            if self._is_long or len(line) > wire.LINE_MAX_BYTES:
                read.append(LongLine(self._number))
            elif body := line.strip(BLANKS):
                read.append(TaskLine(self._number, body))
            self._is_long = False
        if len(self._tail) > wire.LINE_MAX_BYTES:
            self._tail, self._is_long = b"", True
        return read


async def _array(source: Input, start: bytes) -> list[Read]:
    body = bytearray(start)
    while chunk := await read_chunk(source):
        body += chunk
        if len(body) > ARRAY_MAX_BYTES:
            raise ConfigError(
                f"{source.what} {source.path} is an array of more than {ARRAY_MAX_BYTES} bytes;"
                " write one task a line instead"
            )
    try:
        items = wire.array_items(bytes(body), max_bytes=ARRAY_MAX_BYTES)
        return [_item(number, wire.compact(item)) for number, item in enumerate(items, 1)]
    except (RequestError, wire.DecodeError) as error:
        raise ConfigError(f"{source.what} {source.path} is no JSON array: {error}") from error


def _item(number: int, body: bytes) -> Read:
    return TaskLine(number, body) if len(body) <= wire.LINE_MAX_BYTES else LongLine(number)


def _parts(read: Sequence[Read]) -> list[list[Read]]:
    """Divide what was read into parts that one request takes."""
    parts: list[list[Read]] = []
    size = 0
    for one in read:
        length = len(one.body) + 1 if isinstance(one, TaskLine) else 0
        if not parts or len(parts[-1]) >= PART_LINES or size + length > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += length
    return parts
