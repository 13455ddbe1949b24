"""Publishes signed configurations while a run lasts, some of which no agent may take.

A control plane cannot tell a signature that is wrong, so it hands those out; what it would not
hand out is put into an agent's way by the proxy, as one that was taken over would.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec

from netsonde.dsse import Envelope, SigningKey, seal
from netsonde.remote_config import PAYLOAD_TYPE
from support.chaos.evidence import Event, Published
from support.chaos.fleet_invariants import GOOD
from support.chaos.journal import Journal
from support.chaos.lanes import Lane
from support.chaos.processes import now_ns
from support.chaos.settings import SLOTS

TAMPERED, STRANGERS, EXPIRED, REPLAYED = "tampered with", "a stranger's", "expired", "replayed"
PLAIN = b'"report_ms":1'  # how the value begins that is tampered with
# By turns; nothing is put into anybody's way while a bad one is handed out.
HANDED_OUT = (STRANGERS, GOOD, GOOD, TAMPERED, GOOD, GOOD)
IMPOSED = (None, EXPIRED, REPLAYED)


def signing_key(seed: int, whose: str = "operator") -> SigningKey:
    """Return a run's key, or the stranger's; a run that is taken up has the same."""
    return SigningKey(hashlib.sha256(f"chaos {whose} {seed}".encode()).digest())


def envelope(revision: int, key: SigningKey, *, is_expired: bool = False) -> Envelope:
    """Sign values that change nothing that other invariants assume."""
    issued = datetime.now(UTC) - timedelta(days=2 if is_expired else 0)
    payload = {
        "spec": 1,
        "revision": revision,
        "issued_at": issued.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires_at": (issued + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "scope": {"all": True},
        "config": {
            "kinds": {"http": {"concurrency": SLOTS}},
            "cadence": {"report_ms": 100 + revision % 100},
        },
    }
    return seal(PAYLOAD_TYPE, msgspec.json.encode(payload), [key])


def tampered(sealed: Envelope) -> Envelope:
    """Change one byte of what was signed."""
    payload = base64.b64decode(sealed.payload).replace(PLAIN, PLAIN[:-1] + b"2", 1)
    return msgspec.structs.replace(sealed, payload=base64.b64encode(payload).decode())


class Desk(Protocol):
    """What a publisher needs of the operator API."""

    async def publish(self, envelope: bytes) -> None:
        """Publish a signed configuration."""
        ...

    async def read_applied(self, revision: int, *, is_last: bool = False) -> None:
        """Write down what is shown of a revision."""
        ...


class Publisher:
    """Publishes one after another; revisions go on where earlier sessions ended."""

    def __init__(
        self, desk: Desk, lanes: Sequence[Lane], events: Journal, earlier: Sequence[Event]
    ) -> None:
        known = [one for one in earlier if isinstance(one, Published)]
        self.newest = 0  # of those that are good
        self._revision = max((one.revision for one in known), default=0)
        self._turn = 0
        self._handed_out = 0  # by the control plane, the last one
        self._replayable: Envelope | None = None
        self._desk = desk
        self._lanes = lanes
        self._events = events

    async def publish(self, seed: int) -> None:
        """Publish the next one, good or bad, and perhaps put another one into some agents' way."""
        turn, self._turn = self._turn, self._turn + 1
        what = HANDED_OUT[turn % len(HANDED_OUT)]
        revision = self._next()
        sealed = envelope(
            revision, signing_key(seed, "stranger" if what == STRANGERS else "operator")
        )
        await self._publish(revision, tampered(sealed) if what == TAMPERED else sealed, what)
        imposed = IMPOSED[turn % len(IMPOSED)]
        if imposed is not None:
            self._impose(imposed, self._lanes[turn % 2 :: 2], signing_key(seed))

    async def settle(self, seed: int) -> None:
        """Publish the last one, which is good, with nothing in anybody's way."""
        for lane in self._lanes:
            lane.imposed.clear()
        revision = self._next()
        await self._publish(revision, envelope(revision, signing_key(seed)), GOOD)

    def is_settled(self) -> bool:
        """Whether every agent says that the last good one is in force."""
        return all(lane.applied == self.newest for lane in self._lanes)

    async def look(self, *, is_last: bool = False) -> None:
        """Write down what the control plane shows of the one that was published last."""
        if self._handed_out:
            revision = self.newest if is_last else self._handed_out
            await self._desk.read_applied(revision, is_last=is_last)

    async def _publish(self, revision: int, sealed: Envelope, what: str) -> None:
        self._events.write(Published(at=now_ns(), revision=revision, what=what))
        await self._desk.publish(msgspec.json.encode(sealed))
        self._handed_out = revision
        if what == GOOD:
            if self._replayable is None:
                self._replayable = sealed
            self.newest = revision

    def _impose(self, what: str, lanes: Sequence[Lane], key: SigningKey) -> None:
        """Let the proxy give agents what no control plane of ours would."""
        sealed = self._replayable
        if what == EXPIRED:
            revision = self._next()
            self._events.write(Published(at=now_ns(), revision=revision, what=what))
            sealed = envelope(revision, key, is_expired=True)
        if sealed is not None:
            for lane in lanes:
                lane.imposed[:] = [msgspec.json.encode(sealed)]

    def _next(self) -> int:
        self._revision += 1
        return self._revision
