"""The plan of a chaos run, its logs, its settings and its arguments."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from netsonde.clock import NS_PER_MS
from netsonde.spool import Spool
from support.chaos.command import QUICK, _prepared, parser
from support.chaos.evidence import Event, Intended, Page, Session, Struck, Submitted, read_events
from support.chaos.faults import (
    AGENT_FAULTS,
    MESSAGE_FAULTS,
    ORDERED_FAULTS,
    PLAN,
    SERVER_FAULTS,
    WEATHER,
    Fault,
    Planned,
    planned,
    service_ns,
)
from support.chaos.journal import Journal, read
from support.chaos.lanes import Lane
from support.chaos.rig import Rig
from support.chaos.server_program import TERM_MS
from support.chaos.settings import Settings
from support.chaos.stage import spooled

MANY = 5_000


def test_a_plan_is_the_seeds() -> None:
    first = [planned(4, number, 6) for number in range(50)]
    assert first == [planned(4, number, 6) for number in range(50)]
    assert first != [planned(5, number, 6) for number in range(50)]


def test_a_plan_has_every_fault_within_its_bounds() -> None:
    plan = [planned(1, number, 6) for number in range(MANY)]
    counts = Counter(one.fault for one in plan)
    assert set(counts) == set(Fault)
    for fault, (weight, low_ms, high_ms) in PLAN.items():
        assert 0.4 < counts[fault] / (MANY * weight / 1000) < 1.8
        durations = [one.duration_ns for one in plan if one.fault is fault]
        assert low_ms * NS_PER_MS <= min(durations)
        assert max(durations) <= high_ms * NS_PER_MS
    assert {one.agent for one in plan} == set(range(6))


def test_every_fault_is_of_one_sort_and_planned() -> None:
    sorts = (MESSAGE_FAULTS, WEATHER, SERVER_FAULTS, AGENT_FAULTS, ORDERED_FAULTS)
    assert sum(len(sort) for sort in sorts) == len(frozenset().union(*sorts)) == len(Fault)
    assert set(PLAN) == set(Fault)
    assert sum(weight for weight, _, _ in PLAN.values()) == 1000


def test_some_measurements_outlast_a_term_and_most_take_no_time() -> None:
    times = [service_ns(1, task) for task in range(MANY)]
    assert times == [service_ns(1, task) for task in range(MANY)]
    assert sum(time == 0 for time in times) > MANY // 2
    assert any(time > TERM_MS * NS_PER_MS for time in times)


def page(number: int) -> Page:
    return Page(at=number, cursor=f"c{number}", lease_ids=[number])


def test_a_journal_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.write(page(1))
    journal.close()
    journal = Journal(path)
    journal.write(page(2))
    journal.close()
    assert list(read(path, Page)) == [page(1), page(2)]


@pytest.mark.parametrize("torn", [b'{"type":"page","at":', b"x" * 200_000])
def test_a_torn_line_is_none_and_cut_off_when_the_journal_goes_on(
    tmp_path: Path, torn: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.write(page(1))
    journal.close()
    with path.open("ab") as file:
        file.write(torn)
    assert list(read_events(tmp_path)) == [page(1)]
    journal = Journal(path)
    journal.write(page(2))
    journal.close()
    assert list(read_events(tmp_path)) == [page(1), page(2)]


def test_a_journal_that_is_one_torn_line_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 100)
    journal = Journal(path)
    journal.close()
    assert path.read_bytes() == b""


def test_events_come_back_as_what_they_are(tmp_path: Path) -> None:
    events: list[Event] = [
        page(1),
        Struck(number=3, fault=Fault.DELAY, agent=1, begun=4, ended=5),
    ]
    journal = Journal(tmp_path / "events.jsonl")
    for event in events:
        journal.write(event)
    journal.close()
    assert list(read_events(tmp_path)) == events
    assert list(read_events(tmp_path / "none")) == []


def test_settings_come_back_with_their_ports(tmp_path: Path) -> None:
    made = Settings.new(leases=5, faults=2, seed=1, agents=2, epoch_faults=10)
    assert len({made.target_port, made.server_port, made.operator_port}) == 3
    made.save(tmp_path)
    assert Settings.load(tmp_path) == made
    assert Settings.load(tmp_path / "none") is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--leases", "0"],
        ["--leases", "many"],
        ["--faults", "-1"],
        ["--seed", "x"],
        ["--plant", "nothing"],
        ["--times", "0", "kills"],
        ["storms"],
        ["--unknown"],
    ],
)
def test_wrong_arguments_end_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def prepared(*arguments: str) -> tuple[Path, Settings]:
    return _prepared(parser().parse_args(arguments))


def test_a_new_run_keeps_what_was_asked_for(tmp_path: Path) -> None:
    directory, settings = prepared("--directory", str(tmp_path / "new"), "--leases", "7")
    assert (settings.leases, settings.faults, settings.times) == (7, 10_000, 0)
    assert prepared("--resume", str(directory)) == (directory, settings)


def test_the_quick_run_has_a_seed_and_may_be_asked_for_less(tmp_path: Path) -> None:
    where = ("--directory", str(tmp_path / "new"))
    _, settings = prepared("--quick", "--faults", "3", *where)
    assert (settings.seed, settings.faults) == (QUICK["seed"], 3)


def test_kills_are_a_run_of_their_own(tmp_path: Path) -> None:
    directory, settings = prepared("kills", "--times", "9", "--directory", str(tmp_path))
    assert settings.times == 9
    with pytest.raises(SystemExit) as ended:
        prepared("--resume", str(directory))
    assert ended.value.code == 2


def test_nothing_is_resumed_where_no_run_is(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        prepared("--resume", str(tmp_path))
    assert ended.value.code == 2


def test_a_run_of_an_earlier_boot_is_not_taken_up(tmp_path: Path) -> None:
    directory, _ = prepared("--directory", str(tmp_path / "new"))
    journal = Journal(directory / "events.jsonl")
    journal.write(Session(at=1, boot_id="another", commit="c"))
    journal.close()
    with pytest.raises(SystemExit) as ended:
        prepared("--resume", str(directory))
    assert ended.value.code == 2


async def test_a_lane_strikes_once_and_spares_every_second_registration() -> None:
    lane = Lane(0)
    faults = [planned(1, number, 1) for number in range(3)]
    lane.armed.extend(faults)
    assert lane.take("register") == faults[0]
    assert lane.take("register") is None
    assert lane.take("register") == faults[1]
    assert lane.take("claim") == faults[2]
    assert lane.take("claim") is None


async def test_weather_lasts_until_it_is_cleared() -> None:
    lane = Lane(0)
    lane.set_weather(Planned(0, Fault.STORM_429, 0, 0, 1))
    stormy = lane.storm()
    assert stormy is not None
    assert stormy[0].status == 429
    lane.clear()
    assert lane.storm() is None
    await lane.passable()


def test_a_run_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    asked = Intended(at=3, first=2, count=2, key="k")
    for event in (
        Intended(at=1, first=0, count=2, key="j"),
        Submitted(at=2, first=0, task_ids=[1, 2]),
        Struck(number=7, fault=Fault.DELAY, agent=1, begun=4, ended=5),
        page(1),
        page(2),
        asked,
    ):
        journal.write(event)
    journal.close()
    rig = Rig(Settings.new(leases=5, faults=2, seed=1, agents=2, epoch_faults=10), tmp_path)
    assert (rig._next_task, rig._next_fault, rig._finished) == (4, 8, 2)
    assert (rig._cursor, rig._unanswered) == ("c2", asked)
    assert rig._earlier == {Fault.DELAY: 1}


async def test_what_a_spool_still_holds_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    async with asyncio.TaskGroup() as group:
        for lease_id in (2**52, 5, 6):
            group.create_task(spool.append(lease_id, b"{}", cancelled=lease_id == 6))
    records = await spool.pending(10, 1 << 20)
    spool.acknowledge(record.seq for record in records if record.lease_id == 5)
    await spool.flush()
    await spool.close()
    assert spooled(path) == [2**52, 6]
    assert spooled(tmp_path / "none") == []
