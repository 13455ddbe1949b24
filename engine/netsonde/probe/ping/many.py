"""`ping_many`: every packet to any number of targets, as an asynchronous iterator."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from typing import NamedTuple, cast

from netsonde import wire
from netsonde._native import icmp
from netsonde.clock import SystemClock
from netsonde.errors import (
    ConfigError,
    PrivilegeError,
    RequestError,
    ResolveError,
    RouteError,
    TargetDeniedError,
)
from netsonde.model import PingSpec, Reason, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.ping.engines import EngineOptions, open_engine
from netsonde.probe.ping.prober import PingProber
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sockets import pacer_of
from netsonde.probe.ping.sweep import Pinged, Sweep, window_for
from netsonde.probe.ping.verdicts import Fate, verdict
from netsonde.probe.targets import TargetResolver

REPLIES_MAX = 16_384  # not taken yet, above which no further target is begun (see `ping_many`)


class PingReply(NamedTuple):
    """What became of one packet, or of a target to which none could be sent.

    `attempt` counts from 0. `rtt_ns` is None unless a reply came; a late or duplicate one has it
    and says so in `kind`. `reason` and `message` are of failures. `responder`: who sent what came.
    """

    target: str
    address: str | None
    attempt: int
    kind: str  # reply, timeout, error, tx_error, rx_drop, late, duplicate, refused
    rtt_ns: int | None = None
    reason: Reason | None = None
    message: str | None = None
    responder: str | None = None
    ttl: int | None = None


_KINDS = {
    icmp.REPLY: "reply",
    icmp.TIMEOUT: "timeout",
    icmp.ERROR: "error",
    icmp.TX_ERROR: "tx_error",
    icmp.RX_DROP: "rx_drop",
    icmp.LATE: "late",
    icmp.DUPLICATE: "duplicate",
}
_REFUSALS = {
    ResolveError: Reason.RESOLVE_FAILED,
    TargetDeniedError: Reason.DENIED,
    RequestError: Reason.DENIED,
    ConfigError: Reason.DENIED,
    RouteError: Reason.NO_ROUTE,
}
_ANSWERED = (icmp.REPLY, icmp.LATE, icmp.DUPLICATE)


async def ping_many(
    targets: Iterable[str] | AsyncIterable[str],
    *,
    engine: EngineOptions | None = None,
    policy: TargetPolicy | None = None,
    **options: object,
) -> AsyncGenerator[PingReply, None]:
    """Ping every target and yield what becomes of each packet, in the order in which it does.

    targets: addresses and names, taken as there is room; any number. options: the fields of
    `netsonde.model.PingSpec` (count 1 here), such as count, interval_ms, timeout_ms, size. policy:
    by default a person's, who may ping anything but multicast, broadcast and unspecified
    addresses. A target that cannot be pinged yields one reply of kind `refused`. Who takes replies
    more slowly than they come holds back further targets, not the packets of those under way, some
    four million at the most. Leaving the loop early ends the rest; use `contextlib.aclosing` to
    have that done at once.

    Raises:
        RequestError: an option is wrong; names the field and what is allowed.
        PrivilegeError: this process may not send this; says how to grant it.
    """
    spec_of = wire.host_specs(TaskKind.PING, {"count": 1, **options})
    chosen = engine or EngineOptions()
    prober = PingProber(
        SystemClock(),
        TargetResolver(policy or TargetPolicy.person()),
        engine=partial(open_engine, options=chosen),
        pacer=pacer_of(chosen),
    )
    inbox = _Inbox()
    sweep = Sweep(
        prober,
        lambda target: cast("PingSpec", spec_of(target)),
        inbox.take_end,
        on_packet=inbox.take_packet,
        window=window_for(cast("PingSpec", spec_of(wire.ANY_HOST))),
    )
    try:
        async with aclosing(_swept(sweep, inbox, targets)) as replies:
            async for reply in replies:
                yield reply
    finally:
        await prober.close()


async def _swept(
    sweep: Sweep, inbox: "_Inbox", targets: Iterable[str] | AsyncIterable[str]
) -> AsyncGenerator[PingReply, None]:
    """Let the sweep go on beside whoever takes the replies.

    Not in a TaskGroup: one that is open across a yield may be left by another task.
    """
    async with aclosing(inbox.fed(targets)) as source:
        sweeping = asyncio.get_running_loop().create_task(sweep.run(source))
        sweeping.add_done_callback(lambda _: inbox.wake())
        try:
            while not sweeping.done():
                await inbox.news()
                for reply in inbox.taken():
                    yield reply
            for reply in inbox.taken():
                yield reply
            sweeping.result()
        finally:
            inbox.is_open = False
            sweeping.cancel()
            await asyncio.wait((sweeping,))
            if not sweeping.cancelled():
                sweeping.exception()  # was raised above, or nobody waits for it


class _Inbox:
    """What has come and not been taken yet."""

    def __init__(self) -> None:
        self.is_open = True
        self._replies: list[PingReply] = []
        self._failure: PrivilegeError | None = None
        self._arrived = asyncio.Event()
        self._emptied = asyncio.Event()

    async def fed(self, targets: Iterable[str] | AsyncIterable[str]) -> AsyncGenerator[str, None]:
        """Yield targets as long as there is room for what will be said of them."""
        async for target in _each(targets):
            while len(self._replies) >= REPLIES_MAX:
                self._emptied.clear()
                await self._emptied.wait()
            yield target

    def taken(self) -> list[PingReply]:
        """Take all there is.

        Raises:
            PrivilegeError: no packet can be sent at all.
        """
        if self._failure is not None:
            raise self._failure
        taken, self._replies = self._replies, []
        self._arrived.clear()
        self._emptied.set()
        return taken

    async def news(self) -> None:
        """Wait until something comes or ends."""
        await self._arrived.wait()

    def wake(self) -> None:
        """Say that something has come or ended."""
        self._arrived.set()

    def take_packet(self, pinged: Pinged, run: PingRun, packet: Completion) -> None:
        """Take what became of a packet."""
        if packet.kind in _KINDS:
            self._replies.append(_reply(pinged.target, run, packet))
            self.wake()

    def take_end(self, pinged: Pinged) -> None:
        """Take the end of a target; one that had no packets says why."""
        if isinstance(pinged.error, PrivilegeError):
            self._failure = pinged.error
        elif pinged.error is not None and self.is_open:
            self._replies.append(_refusal(pinged.target, None, pinged.error))
        for address, error in pinged.prepared.unable:
            self._replies.append(_refusal(pinged.target, address, error))
        self.wake()


def _refusal(target: str, address: str | None, error: Exception) -> PingReply:
    reason = _REFUSALS.get(type(error), Reason.TX_ERROR)
    return PingReply(target, address, 0, "refused", reason=reason, message=str(error))


def _reply(target: str, run: PingRun, packet: Completion) -> PingReply:
    reason = message = None
    if packet.kind not in _ANSWERED:
        fate = Fate(packet.kind, packet.icmp_type, packet.errno or packet.code)
        said = verdict(run, fate)
        reason, message = said.reason, said.message
    return PingReply(
        target,
        run.address,
        packet.attempt,
        _KINDS[packet.kind],
        packet.rtt_ns if packet.kind in _ANSWERED else None,
        reason,
        message,
        run.responder(packet.responder),
        packet.ttl or None,
    )


async def _each(targets: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(targets, AsyncIterable):
        async for target in targets:
            yield target
        return
    for target in targets:
        yield target
