"""Stored bodies come back as they came, whenever they were written."""

import hashlib
import sqlite3
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.model import TaskKind
from netsonde.server.store import SqliteStore
from netsonde.server.store.bodies import FIRST, pack_all, unpack
from netsonde.server.store.results import NewResult, ResultQuery
from netsonde.server.store.writer import run_alone
from support.stores import new_task

KIND = st.sampled_from(TaskKind)

# What was compressed with a dictionary needs that very one for ever: these never change.
DICTIONARIES = {
    TaskKind.DNS: "6f7a30913692d40c3281bd588e2922454a0b69bac1e59d61a94e03301d609ef1",
    TaskKind.HTTP: "574ef9bc5b289cfeee6293142da70fc7bb64985c74b3932c9b93522cfea1e215",
    TaskKind.TCP: "a157f476f32dc0c57265d0904fe511589ae1f3f9d4be6be6a0e8ba2e42ab7366",
    TaskKind.PING: "4604db2d0c023889c7844994f1360a7dc6e4eb79c61b439905cf6a154814ea1c",
    TaskKind.TRACE: "dad5bed016cc296a9fcd0ebfbdf2f5133436867097845ccd642a2544d535718b",
}


BODY = st.one_of(st.binary(max_size=3_000), st.text().map(str.encode))


def pack(kind: TaskKind, body: bytes) -> bytes:
    return pack_all(kind, [body])[0]


@given(kind=KIND, bodies=st.lists(BODY, min_size=1, max_size=8))
def test_any_bytes_come_back(kind: TaskKind, bodies: list[bytes]) -> None:
    assert [unpack(kind, stored) for stored in pack_all(kind, bodies)] == bodies


@given(kind=KIND, size=st.integers(0, 300_000))
def test_of_any_size(kind: TaskKind, size: int) -> None:
    body = b'{"observations":[' + b'{"name":"x"},' * (size // 13) + b"]}"
    assert unpack(kind, pack(kind, body)) == body


def test_only_what_gets_smaller_is_compressed() -> None:
    assert pack(TaskKind.TCP, b"{}") == b"{}"
    assert unpack(TaskKind.TCP, b"{}") == b"{}"
    long = b'{"observations":' + b"1" * 500 + b"}"
    assert pack(TaskKind.TCP, long).startswith(FIRST)
    assert len(pack(TaskKind.TCP, long)) < 100


@pytest.mark.parametrize("kind", TaskKind)
def test_a_body_of_its_kind_is_a_fraction(kind: TaskKind) -> None:
    file = resources.files("netsonde.server.store").joinpath("dictionaries", f"1_{kind}.json")
    body = file.read_bytes()
    assert hashlib.sha256(body).hexdigest() == DICTIONARIES[kind], "never change a dictionary"
    assert len(pack(kind, body.replace(b"2026", b"2027"))) < len(body) / 5


def test_rows_of_an_earlier_version_are_read_beside_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    body = b'{"lease_id":1,"observations":[' + b'{"name":"tcp_summary"},' * 40 + b"]}"
    store = SqliteStore.open(path)
    run_alone(store, lambda store: store.add_tasks([new_task()]))
    for lease_id in (1, 2):
        result = NewResult(
            lease_id=lease_id,
            task_id=lease_id,
            agent_id=1,
            kind=TaskKind.TCP,
            outcome="ok",
            attempt=1,
            received_ns=1,
            is_final=True,
            spec_id=1,
            body=body,
        )
        run_alone(store, lambda store, row=result: store.add_results([row]))  # type: ignore[misc]
    store.close()
    raw = sqlite3.connect(path)
    raw.execute("UPDATE result SET body = ? WHERE lease_id = 1", (body,))
    raw.commit()
    sizes = [size for (size,) in raw.execute("SELECT length(body) FROM result ORDER BY lease_id")]
    raw.close()
    assert sizes[0] == len(body) > 5 * sizes[1]
    store = SqliteStore.open(path)
    assert [row.body for row in store.results(ResultQuery(limit=9))] == [body, body]
    store.close()
