"""The invariants of running a fleet: of metrics, configurations and an operator's orders. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from msgspec import Struct, field

from support.chaos.case import Case
from support.chaos.evidence import (
    Applied,
    ConfigSaid,
    Counted,
    Drained,
    Exchange,
    Metered,
    Published,
)

GOOD = "good"
CRASHED = "crashed"  # why an agent may have nothing in force: it was killed while it applied it

Finding = Iterator[str]


class _Envelope(Struct, kw_only=True):
    """One envelope of metrics in all the requests that brought it."""

    place: tuple[int, int]  # of its run, among its agent's, and its number in it
    said: Metered
    is_altered: bool = False
    stored: set[int] = field(default_factory=set)  # what answers said, that were not `superseded`
    is_answered: bool = False


def metrics_are_counted_once(case: Case) -> Finding:
    """I10: counters are what the last envelope taken of each agent said, each envelope once.

    One that was passed on and not answered may have been taken or not.
    """
    by_agent: defaultdict[int, list[_Envelope]] = defaultdict(list)
    for envelope in _envelopes(case.evidence.exchanges).values():
        by_agent[envelope.said.agent_id].append(envelope)
        name = f"agent {envelope.said.agent_id}, envelope {envelope.said.seq}"
        if envelope.is_altered:
            yield f"{name}: it said another thing when it was sent again"
        if len(envelope.stored) > 1:
            yield f"{name}: answered {sorted(envelope.stored)} samples stored"
    counted = case.of(Counted)
    if by_agent and not counted:
        yield "nobody asked for the metrics at the end"
    for one in counted[-1:]:
        least, most = 0, 0
        for agent_id, envelopes in by_agent.items():
            yield from _last_is_shown(agent_id, envelopes, one.latest.get(str(agent_id), {}))
            for envelope in envelopes:
                least += max(envelope.stored, default=0)
                is_open = not envelope.is_answered
                most += envelope.said.samples if is_open else max(envelope.stored, default=0)
        if not least <= one.samples <= most:
            yield f"{one.samples} samples are counted, {least} to {most} were sent"


def _envelopes(exchanges: Sequence[Exchange]) -> Mapping[tuple[int, str, int], _Envelope]:
    """Return what reached the control plane, by agent, run and number."""
    runs: defaultdict[int, dict[str, int]] = defaultdict(dict)
    found: dict[tuple[int, str, int], _Envelope] = {}
    for one in sorted(exchanges, key=lambda one: one.begun):
        said = one.metered
        if said is None or (one.sent is None and said.stored is None):
            continue
        of_agent = runs[said.agent_id]
        place = of_agent.setdefault(said.run, len(of_agent)), said.seq
        key = said.agent_id, said.run, said.seq
        envelope = found.setdefault(key, _Envelope(place=place, said=said))
        envelope.is_altered |= envelope.said.values != said.values
        if one.status is not None:
            envelope.is_answered = envelope.is_answered or said.stored is not None
            if said.stored is not None and not said.is_superseded:
                envelope.stored.add(said.stored)
    return found


def _last_is_shown(
    agent_id: int, envelopes: Sequence[_Envelope], shown: Mapping[str, float]
) -> Finding:
    """Compare what is shown of an agent with what it said last, or may have."""
    taken = [one for one in envelopes if one.stored]
    last = max(taken, key=lambda one: one.place, default=None)
    possible = [] if last is None else [last]
    possible += [
        one for one in envelopes if not one.is_answered and (last is None or one.place > last.place)
    ]
    if last is None or any(_is_shown(one.said, shown) for one in possible):
        return
    wrong = next(name for name, value in last.said.values.items() if shown.get(name) != value)
    yield (
        f"agent {agent_id}: {wrong} is shown as {shown.get(wrong)}, envelope {last.said.seq} said"
        f" {last.said.values[wrong]}"
    )


def _is_shown(said: Metered, shown: Mapping[str, float]) -> bool:
    return all(shown.get(name) == value for name, value in said.values.items())


def configurations_only_grow(case: Case) -> Finding:
    """I11: what is in force in an agent's state only grows; nothing bad ever is, the last one is.

    An agent that was killed while it applied one may say that it has none, and that it crashed.
    """
    published = case.of(Published)
    good = {one.revision for one in published if one.what == GOOD}
    bad = {one.revision: one.what for one in published if one.what != GOOD}
    in_force: dict[int, int] = {}
    last: dict[int, int] = {}
    beats = [one for one in case.evidence.exchanges if one.verb == "heartbeat" and not one.is_copy]
    for beat in sorted(beats, key=lambda one: one.begun):
        said = beat.config or ConfigSaid()
        applied = last[beat.agent] = said.applied or 0
        known = in_force.get(beat.agent, 0)
        if applied < known and not (applied == 0 and said.reason == CRASHED):
            yield f"agent {beat.agent}: revision {applied} is in force after {known}"
        in_force[beat.agent] = max(known, applied)
        acknowledged = said.revision if said.status == "ack" else None
        for revision in {applied, acknowledged} - {0, None} - good:
            what = bad.get(revision or 0, "nobody's")
            yield f"agent {beat.agent}: took revision {revision}, which is {what}"
    shown = case.of(Applied)
    for each in shown:
        for host, status, applied_now in each.agents:
            if status == "ack" and each.revision not in good:
                yield f"{host}: shown to have taken revision {each.revision}"
            if applied_now and applied_now not in good:
                yield f"{host}: shown with revision {applied_now} in force"
    if good:
        yield from _last_is_in_force(max(good), last, shown)


def _last_is_in_force(newest: int, last: Mapping[int, int], shown: Sequence[Applied]) -> Finding:
    for agent, revision in last.items():
        if revision != newest:
            yield f"agent {agent}: revision {revision} is in force at the end, not {newest}"
    final = shown[-1] if shown and shown[-1].is_last else None
    if final is None or final.revision != newest:
        yield f"nobody asked what became of revision {newest}"
        return
    for host, status, applied in final.agents:
        if (status, applied) != ("ack", newest):
            yield f"{host}: shown with {status} and revision {applied} in force, not {newest}"
    if len(final.agents) < len(last):
        yield f"{len(final.agents)} of {len(last)} agents are shown with revision {newest}"


def drained_claim_nothing(case: Case) -> Finding:
    """Drain: from its commit until it is resumed an agent is granted nothing.

    Lease ids grow with the commits: those of any claim that was begun when the drain had been
    answered are later than it, and so is everything above them.
    """
    granted = _grants_by_claim(case.evidence.exchanges)
    least = list(accumulate((lease_id for _, lease_id in reversed(granted)), min))[::-1]
    answers: defaultdict[int, list[Exchange]] = defaultdict(list)
    for one in case.evidence.exchanges:
        if one.grants and one.answered is not None:
            answers[one.agent].append(one)
    for drain in case.of(Drained):
        place = bisect_right(granted, drain.begun, key=lambda pair: pair[0])
        if place == len(granted):
            continue
        for one in answers[drain.agent]:
            if one.answered is not None and drain.begun <= one.answered <= drain.ended:
                for grant in one.grants:
                    if grant.lease_id >= least[place]:
                        yield f"agent {drain.agent}: granted lease {grant.lease_id} while drained"


def _grants_by_claim(exchanges: Sequence[Exchange]) -> list[tuple[int, int]]:
    """Return leases, each behind when the claim was first made that it was granted to; in order."""
    claims = [one for one in exchanges if one.claim]
    begun: dict[tuple[int, str], int] = {}
    for one in claims:
        name = one.agent, one.claim
        begun[name] = min(begun.get(name, one.begun), one.begun)
    return sorted(
        (begun[one.agent, one.claim], grant.lease_id) for one in claims for grant in one.grants
    )


def refusals(case: Case) -> int:
    """Return how many times an agent refused a configuration that it was given."""
    return len(
        {
            (one.agent, one.config.revision, one.config.reason)
            for one in case.evidence.exchanges
            if one.config is not None and one.config.status == "nack"
        }
    )
