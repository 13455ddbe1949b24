"""Files of tasks, as arrays and as lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsonde import wire
from netsonde.cli import task_lines
from netsonde.cli.inputs import CHUNK_BYTES, opened
from netsonde.cli.task_lines import LongLine, Read, TaskLine, tasks_in
from netsonde.errors import ConfigError

TASK = b'{"kind":"ping"}'


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(content: bytes) -> Path:
        (tmp_path / "tasks").write_bytes(content)
        return tmp_path / "tasks"

    return written


async def parts_of(path: Path) -> list[list[Read]]:
    with opened([str(path)], "task file") as (source,):
        return [part async for part in tasks_in(source)]


async def read(path: Path) -> list[Read]:
    return [one for part in await parts_of(path) for one in part]


async def test_lines_have_the_numbers_that_an_editor_shows(
    file: Callable[[bytes], Path],
) -> None:
    path = file(b"\n" + TASK + b"\r\n  \n\t" + TASK + b" \nnonsense\n" + TASK)
    assert await read(path) == [
        TaskLine(2, TASK),
        TaskLine(4, TASK),
        TaskLine(5, b"nonsense"),
        TaskLine(6, TASK),
    ]


async def test_an_array_is_its_items(file: Callable[[bytes], Path]) -> None:
    path = file(b' \n[\n {"kind": "ping"},\n 7, "x", [], {"kind":\n "dns"}]\n')
    assert await read(path) == [
        TaskLine(1, TASK),
        TaskLine(2, b"7"),
        TaskLine(3, b'"x"'),
        TaskLine(4, b"[]"),
        TaskLine(5, b'{"kind":"dns"}'),
    ]


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n", b"[]", b"\xef\xbb\xbf"])
async def test_nothing_is_no_task(file: Callable[[bytes], Path], content: bytes) -> None:
    assert await read(file(content)) == []


async def test_a_byte_order_mark_is_no_task(file: Callable[[bytes], Path]) -> None:
    assert await read(file(b"\xef\xbb\xbf" + TASK)) == [TaskLine(1, TASK)]
    assert await read(file(b"\xef\xbb\xbf[" + TASK + b"]")) == [TaskLine(1, TASK)]


@pytest.mark.parametrize("content", [b"[", b"[1", b"[1]2", b'["\n"]', b"[" * 100_000])
async def test_an_array_that_is_none_is_named(
    file: Callable[[bytes], Path], content: bytes
) -> None:
    with pytest.raises(ConfigError, match=r"task file .*tasks is no JSON array"):
        await read(file(content))


async def test_a_long_line_costs_itself_and_no_memory(file: Callable[[bytes], Path]) -> None:
    for size in (wire.LINE_MAX_BYTES + 1, wire.LINE_MAX_BYTES + 3 * CHUNK_BYTES, 1 << 21):
        path = file(TASK + b"\n" + b"x" * size + b"\n" + TASK + b"\n" + b"y" * size)
        assert await read(path) == [
            TaskLine(1, TASK), LongLine(2), TaskLine(3, TASK), LongLine(4),
        ]  # fmt: skip
    path = file(b"x" * wire.LINE_MAX_BYTES + b"\n")
    assert await read(path) == [TaskLine(1, b"x" * wire.LINE_MAX_BYTES)]
    path = file(b'["' + b"x" * wire.LINE_MAX_BYTES + b'", 7]')
    assert await read(path) == [LongLine(1), TaskLine(2, b"7")]


def test_a_long_line_is_answered_as_the_server_would() -> None:
    answer = LongLine(3).answer
    assert (answer.line, answer.task_id, answer.error) == (3, None, "ERR_TOO_LARGE")


async def test_an_array_has_a_limit(
    file: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_lines, "ARRAY_MAX_BYTES", CHUNK_BYTES)
    with pytest.raises(ConfigError, match="write one task a line instead"):
        await read(file(b"[" + b"1," * CHUNK_BYTES + b"1]"))


async def test_blanks_before_the_first_task_have_a_limit(file: Callable[[bytes], Path]) -> None:
    with pytest.raises(ConfigError, match="too many blanks"):
        await read(file(b" " * (2 * wire.LINE_MAX_BYTES) + TASK))


async def test_parts_fit_a_request(
    file: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_lines, "PART_LINES", 3)
    monkeypatch.setattr(task_lines, "PART_BYTES", 2 * len(TASK) + 2)
    parts = await parts_of(file(b"\n".join([TASK, TASK, TASK, b"1", b"2", b"3", b"4"])))
    assert [len(part) for part in parts] == [2, 3, 1, 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.integers() | st.text(max_size=6) | st.dictionaries(st.text(), st.integers())),
    st.booleans(),
)
async def test_what_was_written_is_what_is_read(
    tmp_path: Path, items: list[Any], is_array: bool
) -> None:
    lines = [json.dumps(item) for item in items]
    text = f"[{','.join(lines)}]" if is_array else "\n".join(lines)
    (tmp_path / "tasks").write_text(text)
    got = await read(tmp_path / "tasks")
    assert [one.number for one in got] == list(range(1, len(items) + 1))
    assert [json.loads(one.body) for one in got if isinstance(one, TaskLine)] == items


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
async def test_any_bytes_are_read_or_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tasks").write_bytes(content)
    try:
        got = await read(tmp_path / "tasks")
    except ConfigError as error:
        assert "task file" in str(error)  # noqa: PT017 (most bytes are lines, and no error)
    else:
        assert len(got) <= content.count(b"\n") + 1 or content.strip()[:1] in (b"[", b"\xef")
