"""What the chaos rig publishes: configurations that agents take, and those that they must not."""

import time
from pathlib import Path

import msgspec
import pytest

from netsonde.dsse import Envelope, TrustedKeys
from netsonde.errors import ConfigRefused, RefusalReason
from netsonde.model import TaskKind
from netsonde.remote_config import Accepted, Floor, Holder, inspect, judge
from support.chaos.evidence import Applied, Published, read_events
from support.chaos.fleet_invariants import GOOD
from support.chaos.journal import Journal
from support.chaos.lanes import Lane
from support.chaos.publisher import (
    EXPIRED,
    STRANGERS,
    TAMPERED,
    Publisher,
    envelope,
    signing_key,
    tampered,
)
from support.chaos.settings import SLOTS

SEED = 3
KEY = signing_key(SEED)


class Desk:
    """Takes what is published."""

    def __init__(self, events: Journal) -> None:
        self.taken: list[Envelope] = []
        self._events = events

    async def publish(self, envelope: bytes) -> None:
        self.taken.append(msgspec.json.decode(envelope, type=Envelope))

    async def read_applied(self, revision: int, *, is_last: bool = False) -> None:
        self._events.write(Applied(at=0, revision=revision, agents=[], is_last=is_last))


class Scene:
    """A publisher, two lanes, and what was written down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lanes = [Lane(0), Lane(1)]
        self.journal = Journal(directory / "events.jsonl")
        self.desk = Desk(self.journal)
        self.publisher = self.another()

    def another(self) -> Publisher:
        return Publisher(self.desk, self.lanes, self.journal, read_events(self.directory))

    def published(self) -> list[Published]:
        return [one for one in read_events(self.directory) if isinstance(one, Published)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def judged(sealed: Envelope, floor: Floor | None = None) -> Accepted:
    keys = TrustedKeys([KEY.public])
    return judge(sealed, keys, Holder(7, "chaos-0", {}), floor, time.time_ns())


def refused(sealed: Envelope, floor: Floor | None = None) -> RefusalReason:
    with pytest.raises(ConfigRefused) as caught:
        judged(sealed, floor)
    return caught.value.reason


def test_a_good_one_is_taken_and_leaves_the_slots_as_they_are() -> None:
    accepted = judged(envelope(5, KEY))
    assert accepted.payload.revision == 5
    assert accepted.payload.config.kinds[TaskKind.HTTP].concurrency == SLOTS


def test_a_run_has_one_key_and_a_stranger_another() -> None:
    assert signing_key(SEED).public.text == KEY.public.text
    assert signing_key(SEED, "stranger").public.text != KEY.public.text
    assert signing_key(SEED + 1).public.text != KEY.public.text


@pytest.mark.parametrize("revision", [1, 99, 100, 150, 12_345])
def test_bad_ones_are_refused_for_what_is_wrong_with_them(revision: int) -> None:
    good = envelope(revision, KEY)
    assert refused(tampered(good)) is RefusalReason.BAD_SIGNATURE
    assert refused(envelope(revision, signing_key(SEED, "stranger"))) is RefusalReason.UNKNOWN_KEY
    assert refused(envelope(revision, KEY, is_expired=True)) is RefusalReason.EXPIRED
    assert refused(good, Floor(revision + 1, "d")) is RefusalReason.REPLAYED


def test_one_that_was_tampered_with_still_reads_as_a_configuration() -> None:
    """Or the control plane would not hand it out."""
    changed = inspect(tampered(envelope(5, KEY))).config.cadence.report_ms
    assert changed == 205
    assert inspect(envelope(5, KEY)).config.cadence.report_ms == 105


async def test_good_and_bad_ones_come_by_turns_with_growing_revisions(scene: Scene) -> None:
    for _ in range(12):
        await scene.publisher.publish(SEED)
    published = scene.published()
    assert {one.what for one in published} == {GOOD, TAMPERED, STRANGERS, EXPIRED}
    revisions = [one.revision for one in published]
    assert revisions == sorted(set(revisions))
    good = {one.revision for one in published if one.what == GOOD}
    bad = {one.revision for one in published if one.what in (TAMPERED, STRANGERS)}
    for sealed in scene.desk.taken:
        revision = inspect(sealed).revision
        assert revision in good | bad
        if revision in good:
            judged(sealed)
        else:
            refused(sealed)
    assert scene.publisher.newest == max(good)


async def test_what_no_control_plane_hands_out_is_put_into_agents_way(scene: Scene) -> None:
    reasons = set()
    for _ in range(12):
        await scene.publisher.publish(SEED)
        for lane in scene.lanes:
            assert len(lane.imposed) <= 1
            while lane.imposed:
                sealed = msgspec.json.decode(lane.imposed.pop(), type=Envelope)
                reasons.add(refused(sealed, Floor(scene.publisher.newest, "d")))
    assert reasons == {RefusalReason.EXPIRED, RefusalReason.REPLAYED}


async def test_the_last_one_is_good_and_in_nobodys_way(scene: Scene) -> None:
    for _ in range(5):
        await scene.publisher.publish(SEED)
    scene.lanes[0].imposed.append(b"x")
    await scene.publisher.settle(SEED)
    assert [lane.imposed for lane in scene.lanes] == [[], []]
    judged(scene.desk.taken[-1])
    assert not scene.publisher.is_settled()
    for lane in scene.lanes:
        lane.applied = scene.publisher.newest
    assert scene.publisher.is_settled()
    await scene.publisher.look(is_last=True)
    last = list(read_events(scene.directory))[-1]
    assert last == Applied(at=0, revision=scene.publisher.newest, agents=[], is_last=True)


async def test_revisions_go_on_in_a_run_that_is_taken_up(scene: Scene) -> None:
    for _ in range(3):
        await scene.publisher.publish(SEED)
    before = max(one.revision for one in scene.published())
    await scene.another().settle(SEED)
    assert scene.published()[-1].revision == before + 1
