"""Original agents on our control plane, our agent on the original's servers: hours of it.

NETSONDE_ORIGINAL_HOURS says how many, NETSONDE_ORIGINAL_SEED which; a failure says what did not
hold, and the same seed repeats it.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S
from netsonde.control_plane import TransportRequest, TransportResponse, cadence, client, exchange
from netsonde.control_plane.session import AgentRuntime
from netsonde.server import leasing
from support.lease_world.virtual_time import EPOCH_NS
from support.original import GoServer, RustServer
from support.original.fleet import BURST, Damage, run_fleet
from support.original.our_agent import RAM, run_agent
from support.original.pairs import (
    TASKS,
    after_a_restart_without_a_database,
    run_pair,
    seconds_with_us,
)
from support.original.pools import COMMAND_QUEUE, POOLS
from support.original.running import WrongError, told
from support.original.rust_server import QUOTAS

HOURS = float(os.environ.get("NETSONDE_ORIGINAL_HOURS", "10"))
SEED = int(os.environ.get("NETSONDE_ORIGINAL_SEED", "1"))
PLANTED_HOURS = 1.0
CLAIMLESS = "wedged: (claim has failed|no claim has succeeded)"


def say(capsys: pytest.CaptureFixture[str], what: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{HOURS:g} h, {what}")


# ── the original agent on our control plane ──


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_original_agents_work_for_hours_and_nothing_is_stuck_or_lost(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as folder:
        database = Path(folder) / "server.db" if store == "sqlite" else None
        summary = run_fleet(HOURS, database, seed=SEED)
    say(capsys, f"original agents on ours, {store}: {told(summary)}")

    assert summary.outages >= int(HOURS)
    silent = summary.dead["the lease expired without a report"]
    assert sum(summary.outcomes.values()) + silent == summary.tasks
    assert summary.silent > silent > 0
    stubs = summary.tasks * BURST["http"] // sum(BURST.values())
    assert 0 < summary.outcomes["agent_error"] <= stubs
    assert summary.grants > summary.tasks


def test_an_original_agent_is_given_work_at_its_own_pace() -> None:
    """It is granted twice its pools; its next claim waits for room, and not for twenty seconds."""
    duration_s = 0.5
    ideal_s = TASKS * duration_s / POOLS["tcp"]
    assert seconds_with_us(duration_s) < 1.25 * ideal_s


def test_an_original_agent_does_not_outlive_its_control_planes_database() -> None:
    """It registers once, when it starts: nothing that we could answer makes it do so again."""
    stuck, started_again = after_a_restart_without_a_database()
    assert stuck is not None
    assert "unexpected status code: 401" in stuck
    assert started_again is None


def extension_as_an_object(
    request: TransportRequest, response: TransportResponse
) -> TransportResponse:
    """Both original servers answer so, and their own agent cannot read it."""
    if not request.path.endswith("/extend") or response.status != 200:
        return response
    body = {"outcomes": json.loads(response.body), "revoked": []}
    return TransportResponse(200, response.headers, json.dumps(body).encode())


def refused_report(request: TransportRequest, response: TransportResponse) -> TransportResponse:
    """A refusal is to the original agent what a lost packet is: it sends the same bytes again."""
    if request.path.endswith("/report"):
        body = json.loads(request.body)
        if any(item["lease_id"] % 16 == 3 for item in body["completed"]):
            return TransportResponse(409, response.headers, b"{}")
    return response


def unknown_kind(request: TransportRequest, response: TransportResponse) -> TransportResponse:
    """One lease of a kind that it does not know loses the batch; it claims again and again."""
    if not request.path.endswith("/claim"):
        return response
    body = json.loads(response.body)
    if body.get("leases"):
        body["leases"][0] |= {"kind": "tls", "spec": {"kind": "tls", "host": "up.example"}}
    return TransportResponse(response.status, response.headers, json.dumps(body).encode())


def nothing_as_204(request: TransportRequest, response: TransportResponse) -> TransportResponse:
    """The Go server answers so to a claim for which there is nothing."""
    if request.path.endswith("/claim") and b'"leases":[]' in response.body:
        return TransportResponse(204, {}, b"")
    return response


@pytest.mark.parametrize(
    ("damage", "found_as"),
    [
        (extension_as_an_object, "wedged: extend has failed"),
        (refused_report, "wedged: report has failed"),
        (unknown_kind, CLAIMLESS),
        (nothing_as_204, CLAIMLESS),
    ],
)
def test_what_wedges_an_original_agent_is_found(damage: Damage, found_as: str) -> None:
    with pytest.raises(WrongError, match=found_as):
        run_fleet(PLANTED_HOURS, damage=damage)


def test_leases_that_are_never_taken_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing.SweepGate, "may_expire", lambda _self, _now_ns: False)
    with pytest.raises(WrongError, match="is stranded"):
        run_fleet(PLANTED_HOURS)


# ── our agent on the original's servers ──


@pytest.mark.parametrize("made", [RustServer, GoServer])
def test_our_agent_works_for_hours_and_nothing_is_stuck_or_lost(
    made: type[RustServer] | type[GoServer], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_agent(made, HOURS, seed=SEED)
    say(capsys, f"our agent on {made.__name__}: {told(summary)}")

    assert summary.limited == 0
    assert summary.outages >= int(HOURS)
    assert summary.registrations == 2  # the second one after the database was lost
    assert summary.never_arrived > 0
    assert {"claim", "report", "extend"} <= set(summary.answers_lost)
    ended = summary.measured + summary.cancelled
    assert summary.measured > 0.9 * (summary.tasks - summary.foreign - summary.never_arrived)
    if made is RustServer:  # it takes nothing back: what never arrived is lost by it
        assert ended + summary.never_arrived == summary.tasks
    else:
        assert ended >= summary.tasks
        assert summary.cancelled >= summary.foreign > 0  # what nobody had asked for


TIGHT = {verb: (max(1, most // 3), period_s, 1) for verb, (most, period_s, _) in QUOTAS.items()}


def test_quotas_that_are_too_low_are_obeyed_and_nothing_is_lost() -> None:
    summary = run_agent(lambda clock, rng: RustServer(clock, rng, quotas=TIGHT), 2, seed=SEED)

    assert summary.limited > 0
    assert summary.measured + summary.cancelled + summary.never_arrived == summary.tasks


def test_a_lost_registration_costs_ten_minutes_where_one_in_ten_is_allowed() -> None:
    summary = run_agent(RustServer, PLANTED_HOURS, seed=SEED, lost_first=("register",))

    assert summary.answers_lost["register"] == 1
    assert summary.limited == 1  # told once to wait, and waited
    assert summary.registrations == 3
    assert summary.measured + summary.cancelled + summary.never_arrived == summary.tasks


def test_a_deadline_by_the_wrong_wall_clock_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's is days off the Go server's: by its own no lease has any time left."""
    monkeypatch.setattr(
        exchange.Answer, "date_epoch_ms", property(lambda _: 1000 * (EPOCH_NS // NS_PER_S + 86_400))
    )
    with pytest.raises(WrongError, match="still owed"):
        run_agent(GoServer, PLANTED_HOURS)


def eager(patch: pytest.MonkeyPatch) -> None:
    """Call an original server as often as ours."""
    patch.setattr(client, "LEGACY_CADENCE", cadence.CADENCE)


def deaf(patch: pytest.MonkeyPatch) -> None:
    """Call again however long one was asked to wait."""
    patch.setattr(exchange, "_hint_ms", lambda _failure: None)


def test_an_agent_that_calls_too_often_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    assert run_agent(RustServer, PLANTED_HOURS).limited > 0


def test_an_agent_that_does_not_wait_as_asked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    deaf(monkeypatch)
    with pytest.raises(WrongError, match="was not to call, and did"):
        run_agent(RustServer, PLANTED_HOURS)


def test_an_agent_that_keeps_a_dead_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AgentRuntime._reauthenticate

    async def never_again(self: AgentRuntime, refused: Any) -> None:
        if refused is None:
            await plain(self, refused)

    monkeypatch.setattr(AgentRuntime, "_reauthenticate", never_again)
    with pytest.raises(WrongError, match=r"no (heartbeat|claim) for"):
        run_agent(RustServer, PLANTED_HOURS)


def test_a_seed_makes_one_world() -> None:
    assert run_fleet(PLANTED_HOURS, seed=7) == run_fleet(PLANTED_HOURS, seed=7)
    for made in (RustServer, GoServer):
        assert run_agent(made, PLANTED_HOURS, seed=7) == run_agent(made, PLANTED_HOURS, seed=7)


# ── the originals by themselves ──


@pytest.mark.parametrize("made", [RustServer, GoServer])
def test_an_original_agent_wedges_on_its_own_servers(
    made: Callable[..., RustServer | GoServer],
) -> None:
    """What ours must not do to it; with this its likeness is shown too."""
    pair = run_pair(made, hours=0.5)

    assert pair.stuck is not None
    assert "extend has failed" in pair.stuck
    assert "Expected `array`, got `object`" in pair.stuck
    assert pair.commands == COMMAND_QUEUE
    assert 0 < pair.completed < COMMAND_QUEUE
