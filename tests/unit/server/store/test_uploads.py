"""What every store remembers of uploads, and tells of how far its results reach."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netsonde.model import TaskKind
from netsonde.server.store import Store
from netsonde.server.store.results import NewResult, ResultBounds, ResultQuery
from netsonde.server.store.uploads import UploadedLine
from support.stores import STORES, TCP_SPEC, new_task, open_store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def lines(*numbers: int) -> dict[int, UploadedLine]:
    return {number: UploadedLine(b"d%d" % number, number + 1000) for number in numbers}


def test_lines_are_kept_by_key_and_number(store: Store) -> None:
    store.keep_uploaded("a", lines(1, 2, 5), 10)
    store.keep_uploaded("a", lines(6), 11)
    store.keep_uploaded("b", lines(3), 11)
    assert store.uploaded("a", range(2, 6)) == lines(2, 5)
    assert store.uploaded("a", range(1, 100)) == lines(1, 2, 5, 6)
    assert store.uploaded("b", range(1, 100)) == lines(3)
    assert store.uploaded("c", range(1, 100)) == {}


def test_many_lines_at_once(store: Store) -> None:
    store.keep_uploaded("a", lines(*range(1, 501)), 10)
    assert store.uploaded("a", range(1, 501)) == lines(*range(1, 501))


def test_keys_that_are_not_used_are_forgotten_bit_by_bit(store: Store) -> None:
    store.keep_uploaded("old", lines(1, 2, 3), 10)
    store.keep_uploaded("used", lines(1), 10)
    store.keep_uploaded("used", lines(2), 100)
    assert store.forget_uploads(50, 2) == 2
    assert len(store.uploaded("old", range(1, 10))) == 1
    assert store.forget_uploads(50, 2) == 1
    assert store.forget_uploads(50, 2) == 0
    assert store.uploaded("old", range(1, 10)) == {}
    assert store.uploaded("used", range(1, 10)) == lines(1, 2)
    store.keep_uploaded("old", lines(1), 200)
    assert store.uploaded("old", range(1, 10)) == lines(1)


def add_results(store: Store, count: int) -> None:
    first = store.result_bounds().newest + 1
    spec_id = 1
    store.add_tasks([new_task(spec=TCP_SPEC)])
    store.add_results(
        [
            NewResult(
                lease_id=number,
                task_id=number,
                agent_id=1,
                kind=TaskKind.TCP,
                outcome="ok",
                attempt=1,
                received_ns=number,
                is_final=True,
                spec_id=spec_id,
                body=b"x" * 100,
            )
            for number in range(first, first + count)
        ]
    )


def test_bounds_of_results(store: Store) -> None:
    assert store.result_bounds() == ResultBounds(1, 0)
    add_results(store, 3)
    assert store.result_bounds() == ResultBounds(1, 3)
    add_results(store, 1)
    assert store.result_bounds() == ResultBounds(1, 4)


def test_ids_that_were_taken_back_are_given_again(tmp_path: Path) -> None:
    store = open_store("sqlite", tmp_path)
    store.begin()
    store.savepoint()
    add_results(store, 2)
    store.undo()
    add_results(store, 1)
    store.commit()
    assert store.result_bounds() == ResultBounds(1, 1), "no gap that would look like a deletion"
    store.close()


def test_a_page_ends_at_an_id_or_with_enough_bytes(store: Store) -> None:
    add_results(store, 6)

    def ids(**query: int) -> list[int]:
        wanted = ResultQuery(**({"limit": 10} | query))  # type: ignore[arg-type]
        return [row.result_id for row in store.results(wanted)]

    assert ids() == [1, 2, 3, 4, 5, 6]
    assert ids(through=4) == [1, 2, 3, 4]
    assert ids(through=4, position=2) == [3, 4]
    assert ids(through=4, limit=3) == [1, 2, 3]
    assert ids(bytes_max=1) == [1]
    assert ids(bytes_max=2 * (100 + len(TCP_SPEC))) == [1, 2]
    assert ids(bytes_max=2 * (100 + len(TCP_SPEC)) + 1) == [1, 2, 3]
    assert ids(position=6) == []
