"""Configurations in every store; each test runs on each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.server.store import Store
from netsonde.server.store.configs import ConfigReportRow, ConfigRow
from support.stores import STORES, open_store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def row(revision: int, **changes: Any) -> ConfigRow:
    fields: dict[str, Any] = {
        "revision": revision,
        "digest": "d",
        "envelope": b'{"payload":"x"}',
        "scope": b'{"all":true}',
        "published_ns": 10 * revision,
        "expires_ns": 2**62,
    }
    return ConfigRow(**(fields | changes))


def report(revision: int, agent_id: int, status: str = "ack") -> ConfigReportRow:
    return ConfigReportRow(revision=revision, agent_id=agent_id, status=status, reported_ns=5)


def test_revisions_are_listed_from_the_greatest(store: Store) -> None:
    for revision in (2, 2**53 - 1, 1):
        store.save_config(row(revision))

    assert [one.revision for one in store.configs(None, 10)] == [2**53 - 1, 2, 1]
    assert [one.revision for one in store.configs(None, 1)] == [2**53 - 1]
    assert [one.revision for one in store.configs(2, 10)] == [1]
    assert store.config(2) == row(2)
    assert store.config(3) is None


def test_a_revision_is_replaced_as_a_whole(store: Store) -> None:
    store.save_config(row(1))
    other = row(1, digest="e", envelope=b"{}", scope=b"{}", published_ns=1, expires_ns=2)
    store.save_config(other)

    assert store.configs(None, 10) == [other]


def test_an_agents_last_word_stays(store: Store) -> None:
    store.save_config(row(1))
    store.save_config_report(report(1, 8))
    store.save_config_report(report(1, 7, "nack"))
    store.save_config_report(report(1, 7))
    store.save_config_report(report(2, 7))

    assert store.config_reports(1) == [report(1, 7), report(1, 8)]


def test_what_was_said_of_a_revision_goes_with_it(store: Store) -> None:
    for revision in (1, 2):
        store.save_config(row(revision))
        store.save_config_report(report(revision, 7))
    store.delete_config(1)
    store.delete_config(9)

    assert [one.revision for one in store.configs(None, 10)] == [2]
    assert store.config_reports(1) == []
    assert store.config_reports(2) == [report(2, 7)]


def test_they_survive_a_restart(tmp_path: Path) -> None:
    first = open_store("sqlite", tmp_path)
    first.begin()
    first.save_config(row(4))
    first.save_config_report(report(4, 7))
    first.commit()
    first.close()
    again = open_store("sqlite", tmp_path)

    assert again.config(4) == row(4)
    assert again.config_reports(4) == [report(4, 7)]
    again.close()
