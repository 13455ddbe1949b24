"""Lists of targets, from files and pipes."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.exits import Exit, exit_for
from netsonde.cli.inputs import CHUNK_BYTES, Input, opened
from netsonde.cli.target_lists import LINE_MAX_BYTES, targets_in
from netsonde.errors import ConfigError
from netsonde.model import HOST_MAX


async def read(path: Path) -> list[str]:
    with opened([str(path)]) as (source,):
        return [target async for target in targets_in(source)]


async def test_blanks_comments_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(
        b"# all of them\n\n  a  \nb\r\n\tc # the third\n#d\n   \n10.0.0.0/30"
    )
    assert await read(tmp_path / "list") == ["a", "b", "c", "10.0.0.0/30"]


@pytest.mark.parametrize("content", [b"", b"\n", b"# nothing\n", b" \t\r\n"])
async def test_an_empty_list_has_no_targets(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    assert await read(tmp_path / "list") == []


async def test_bytes_that_are_no_text_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\x00z\nb\n")
    assert await read(tmp_path / "list") == ["\\xff\0z", "b"]


async def test_a_line_that_never_ends_is_cut_and_the_next_one_read(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(
        b"a" * (3 * CHUNK_BYTES) + b"\nb\n" + b" " * CHUNK_BYTES * 2 + b"c"
    )
    assert await read(tmp_path / "list") == ["a" * (HOST_MAX + 1), "b", "c"]


@given(st.lists(st.binary(max_size=80).map(lambda line: line.replace(b"\n", b" ")), max_size=20))
def test_lines_are_the_same_however_they_arrive(lines: list[bytes]) -> None:
    content = b"\n".join(lines)

    async def piecewise(pieces: Sequence[bytes]) -> list[str]:
        reader, writer = os.pipe()
        try:
            found: list[str] = []

            async def collect() -> None:
                found.extend([target async for target in targets_in(Input("-", reader))])

            async with asyncio.TaskGroup() as group:
                group.create_task(collect())
                for piece in pieces:
                    os.write(writer, piece)
                    await asyncio.sleep(0)
                os.close(writer)
            return found
        finally:
            os.close(reader)

    whole = asyncio.run(piecewise([content]))
    assert (
        asyncio.run(piecewise([content[at : at + 7] for at in range(0, len(content), 7)])) == whole
    )
    assert len(whole) <= len(lines)


async def test_a_pipe_is_followed_as_it_delivers() -> None:
    reader, writer = os.pipe()
    targets = targets_in(Input("-", reader))
    for number in range(3):
        os.write(writer, b"host%d\npart" % number)
        expected = f"host{number}" if number == 0 else f"parthost{number}"
        assert await anext(targets) == expected
    os.close(writer)
    assert [target async for target in targets] == ["part"]
    os.close(reader)


async def test_waiting_for_a_pipe_can_be_cancelled() -> None:
    reader, writer = os.pipe()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(targets_in(Input("-", reader)))
    os.close(reader)
    os.close(writer)


async def test_a_device_without_end_of_wait_is_read() -> None:
    assert await read(Path(os.devnull)) == []


@pytest.mark.parametrize(
    ("name", "code"), [("missing", Exit.USAGE), (".", Exit.USAGE), ("nul\0", Exit.USAGE)]
)
def test_a_list_that_is_none_is_bad_input(tmp_path: Path, name: str, code: Exit) -> None:
    with pytest.raises(ConfigError, match="target list") as caught, opened([f"{tmp_path}/{name}"]):
        pass
    assert exit_for(caught.value) == code


def test_a_list_that_may_not_be_read_could_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="Permission denied") as caught, opened(["secret"]):
        pass
    assert exit_for(caught.value) == Exit.CANNOT


async def test_a_list_that_breaks_midway_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    (tmp_path / "hosts").write_bytes(b"a\n")
    monkeypatch.setattr(os, "read", refuse)
    with pytest.raises(ConfigError, match="hosts cannot be read: Input/output") as caught:
        await read(tmp_path / "hosts")
    assert exit_for(caught.value) == Exit.CANNOT


def test_the_longest_target_fits_a_line() -> None:
    assert LINE_MAX_BYTES > HOST_MAX * 4
