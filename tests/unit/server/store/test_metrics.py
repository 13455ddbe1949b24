"""What every store must do with metrics; each test runs on each store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netsonde.metrics import MetricType
from netsonde.server.store import Store
from netsonde.server.store.metrics import Level, MetricBlock, MetricSource, RollProgress
from support.stores import STORES, open_store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def key(name: str) -> str:
    return f'["{MetricType.COUNTER}","{name}",null,{{}},[]]'


def test_a_source_is_replaced(store: Store) -> None:
    assert store.metric_source(7) is None
    for seq in (1, 2):
        source = MetricSource(
            agent_id=7, run="a", seq=seq, answers=b"{}", earlier=b"[]", latest=b"x"
        )
        store.save_metric_source(source)
        assert store.metric_source(7) == source


def test_series_take_as_many_ids_as_they_have_numbers(store: Store) -> None:
    first = store.add_metric_series(7, {key("a"): ("a", 5), key("b"): ("b", 1)}, 1)
    second = store.add_metric_series(8, {key("a"): ("a", 1)}, 1)
    assert first == {key("a"): 1, key("b"): 6}
    assert second == {key("a"): 7}
    assert store.metric_keys(7) == first
    assert store.metric_keys(9) == {}


def test_series_are_found_by_name_and_agent_in_pages(store: Store) -> None:
    for agent_id in (7, 8):
        store.add_metric_series(agent_id, {key("a"): ("a", 1), key("b"): ("b", 1)}, 1)

    def found(name: str | None, agent_id: int | None, after: int = 0, limit: int = 9) -> list[int]:
        return [one.series_id for one in store.metric_series(name, agent_id, after, limit)]

    assert found(None, None) == [1, 2, 3, 4]
    assert found("a", None) == [1, 3]
    assert found("a", 8) == [3]
    assert found(None, None, after=2, limit=1) == [3]
    (series,) = store.metric_series("b", 8, 0, 9)
    assert (series.agent_id, series.key) == (8, key("b"))


def test_series_that_nobody_sends_are_dropped(store: Store) -> None:
    store.add_metric_series(7, {key(name): (name, 1) for name in "abc"}, 10)
    store.saw_metric_series([2, 99], 20)
    store.saw_metric_series([2], 15)
    assert store.drop_metric_series(20, 1) == 1
    assert store.drop_metric_series(20, 5) == 1
    assert store.metric_keys(7) == {key("b"): 2}
    assert store.add_metric_series(7, {key("a"): ("a", 1)}, 30) == {key("a"): 4}, "never again 1"


def test_blocks_are_read_by_agent_and_time_and_dropped_by_age(store: Store) -> None:
    blocks = [
        MetricBlock(agent_id, at, b"%d" % at) for at in (10, 20, 20, 30) for agent_id in (7, 8)
    ]
    for block in blocks:
        store.add_metric_block(Level.RAW, block)
    store.add_metric_block(Level.MINUTE, MetricBlock(7, 0, b"m"))
    mine = [block for block in blocks if block.agent_id == 7]
    assert store.metric_blocks(Level.RAW, 7, 10, 30, 9) == mine[:3]
    assert store.metric_blocks(Level.RAW, 7, 11, 31, 2) == mine[1:3]
    assert store.metric_agents(Level.RAW, 10, 20, 0, 9) == [7, 8]
    assert store.metric_agents(Level.RAW, 10, 20, 7, 9) == [8]
    assert store.metric_agents(Level.RAW, 11, 20, 0, 9) == []
    assert store.metric_agents(Level.RAW, 10, 40, 0, 1) == [7]
    assert store.first_metric_block_ns(Level.RAW, 11) == 20
    assert store.first_metric_block_ns(Level.RAW, 31) is None
    assert store.drop_metric_blocks(Level.RAW, 20, 1) == 1
    assert store.drop_metric_blocks(Level.RAW, 20, 9) == 1
    assert store.first_metric_block_ns(Level.RAW, 0) == 20
    assert store.first_metric_block_ns(Level.MINUTE, 0) == 0


def test_progress_is_kept_by_level(store: Store) -> None:
    assert store.roll_progress(Level.HOUR) == RollProgress()
    store.save_roll_progress(Level.HOUR, RollProgress(60, 7))
    store.save_roll_progress(Level.HOUR, RollProgress(120))
    assert store.roll_progress(Level.HOUR) == RollProgress(120)
    assert store.roll_progress(Level.MINUTE) == RollProgress()


def test_metrics_outlast_a_restart(tmp_path: Path) -> None:
    store = open_store("sqlite", tmp_path)
    store.begin()
    store.add_metric_series(7, {key("a"): ("a", 3)}, 1)
    store.add_metric_block(Level.RAW, MetricBlock(7, 5, b"x"))
    store.commit()
    store.close()
    again = open_store("sqlite", tmp_path)
    again.begin()
    assert again.metric_keys(7) == {key("a"): 1}
    assert again.metric_blocks(Level.RAW, 7, 0, 9, 9) == [MetricBlock(7, 5, b"x")]
    assert again.add_metric_series(8, {key("a"): ("a", 1)}, 1) == {key("a"): 4}
    again.commit()
    again.close()
