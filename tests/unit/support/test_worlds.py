"""The record of worlds that were played, and the command that adds to it."""

from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest

from support.lease_world import command
from support.lease_world.faults import Fault
from support.lease_world.oracle import WrongError
from support.lease_world.record import (
    SEEDS_PER_LINE,
    Played,
    Record,
    left_of,
    summary,
    within,
)
from support.lease_world.world import Summary


def line(first: int, last: int, commit: str = "abc", **faults: int) -> Played:
    return Played(first, last, commit, tasks=200 * (last - first + 1), grants=1, faults=faults)


@pytest.mark.parametrize(
    ("text", "seeds"), [("2000", range(1, 2001)), ("7-7", range(7, 8)), ("11-30", range(11, 31))]
)
def test_seeds_are_a_number_or_a_range(text: str, seeds: range) -> None:
    assert command.seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["0", "9-3", "x", "-5-"])
def test_no_seeds_are_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([text])

    assert ended.value.code == 2
    assert "N|A-B" in capsys.readouterr().err


def test_what_is_left_is_cut_into_lines() -> None:
    count = 2 * SEEDS_PER_LINE + 5

    assert left_of(range(1, count + 1), ()) == [
        range(1, SEEDS_PER_LINE + 1),
        range(SEEDS_PER_LINE + 1, 2 * SEEDS_PER_LINE + 1),
        range(2 * SEEDS_PER_LINE + 1, count + 1),
    ]


def test_seeds_that_were_played_are_left_out() -> None:
    played = [line(1, 3), line(6, 6)]

    assert left_of(range(1, 9), played) == [range(4, 6), range(7, 9)]


def test_a_record_keeps_lines_and_passes_over_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    record = Record(path)
    assert record.read() == []

    record.add(line(1, 20, slow=3))
    with path.open("a") as file:
        file.write('{"first": 21, "la')
    assert record.read() == [line(1, 20, slow=3)]


def test_a_seed_that_was_played_twice_counts_once() -> None:
    lines = [line(1, 20, "old", slow=1), line(1, 20, "new", slow=2), line(21, 40, "new", slow=4)]

    assert within(range(1, 41), lines) == lines[1:]
    assert within(range(1, 31), lines) == lines[1:2]  # not all of the other is asked for
    assert summary(range(1, 41), lines[1:]).startswith(
        "worlds: 40 of seeds 1-40, 8000 tasks, 2 leases, 6 faults, 1 of"
    )


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Play worlds that take no time; seed 13 is broken. Returns the seeds as they are played."""
    played: list[int] = []

    def simulate(seed: int) -> Summary:
        played.append(seed)
        if seed == 13:
            raise WrongError("seed 13: a result is gone")
        return Summary(seed, 200, 0, 250, Counter(dict.fromkeys(Fault, 1)), 1.0)

    class Inline:
        """Plays where it is asked to."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> "Inline":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, work: object, *arguments: object) -> object:
            future: Future[Played] = Future()
            assert callable(work)
            future.set_result(work(*arguments))
            return future

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(command, "simulate", simulate)
    monkeypatch.setattr(command, "ProcessPoolExecutor", Inline)
    return played


def test_a_run_goes_on_where_the_last_one_ended(
    tmp_path: Path, worlds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    record = ["--record", str(tmp_path / "record")]
    assert command.main(["21-60", *record]) == 0
    assert command.main(["21-100", *record]) == 0
    assert sorted(worlds) == [*range(21, 101)]

    assert command.main(["21-100", *record, "--again"]) == 0
    assert len(worlds) == 160
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("worlds: 80 of seeds 21-100, 16000 tasks, 20000 leases")


def test_a_failure_is_named_and_stays_in_the_record(
    tmp_path: Path, worlds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    record = ["--record", str(tmp_path / "record")]
    assert command.main(["20", *record]) == 1
    assert "seed 13: a result is gone" in capsys.readouterr().out

    assert command.main(["20", *record]) == 1
    assert len(worlds) == 20
    assert "1 failures" in capsys.readouterr().out
