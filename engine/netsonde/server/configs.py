"""Signed configurations: which is whose, and what agents say of theirs.

The control plane sorts and hands out; it signs nothing and cannot: an agent believes the operator's
key only. A scope's labels are those an agent gives itself, since it must be able to check them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netsonde import dsse, wire
from netsonde.clock import NS_PER_S, rfc3339
from netsonde.dsse import Envelope
from netsonde.errors import ConfigRefused, ErrorCode, RefusalReason, RequestError
from netsonde.model import ConfigStatus
from netsonde.remote_config import Holder, Payload, Scope, inspect
from netsonde.server.leasing import ServerTime
from netsonde.server.queries import INSTANT_MAX_NS
from netsonde.server.registry import AgentRegistry, clean_labels
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.configs import ConfigReportRow, ConfigRow
from netsonde.server.waiting import Waiters

IN_FORCE_MAX = 1_000  # revisions with scopes of their own: each is looked through per agent
SUPERSEDED_KEPT = 100  # for whoever wants to know what became of one
STATES = ("ack", "nack", "pending", "superseded")
Committed = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    scope: Scope
    text: bytes  # of the scope
    names: frozenset[int | str]  # of the agents it is for; thousands, looked up for every agent

    def covers(self, holder: Holder) -> bool:
        """Whether the revision is for an agent."""
        if self.scope.agents is None:
            return self.scope.covers(holder)
        return holder.agent_id in self.names or holder.hostname in self.names


class Configs:
    """The published configurations of one control plane."""

    def __init__(
        self, registry: AgentRegistry, writer: StoreWriter, time: ServerTime, waiters: Waiters
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._time = time
        self._waiters = waiters
        self._entries: dict[int, _Entry] = {}  # the greatest revision first
        self._generation = 0
        self._found: dict[int, tuple[tuple[object, ...], int | None]] = {}
        self._heard: dict[int, ConfigStatus] = {}

    def load(self, store: Store) -> None:
        """Read what is published."""
        rows = store.configs(None, IN_FORCE_MAX + SUPERSEDED_KEPT + 1)
        self._keep({row.revision: _entry(row) for row in rows})

    # ── whose ──

    def revision_for(self, agent: AgentRow) -> int | None:
        """Return the greatest revision that is for an agent."""
        if not self._entries:
            return None
        key = (self._generation, agent.hostname, agent.document)
        known = self._found.get(agent.agent_id)
        if known is not None and known[0] == key:
            return known[1]
        holder = holder_of(agent)
        found = (one.revision for one in self._entries.values() if one.covers(holder))
        revision = next(found, None)
        self._found[agent.agent_id] = (key, revision)
        return revision

    async def config_for(self, agent: AgentRow) -> ConfigRow | None:
        """Return the configuration with the greatest revision that is for an agent."""
        revision = self.revision_for(agent)
        if revision is None:
            return None
        return await self._writer.read(lambda store: store.config(revision))

    # ── publishing ──

    def publication(
        self, envelope: Envelope
    ) -> Callable[[Store], tuple[ConfigRow, bool, Committed]]:
        """Return the operation that publishes an envelope.

        It returns the row, whether it is new, and what to do after the commit. The same payload
        again takes its signatures: so a key is exchanged without another revision.

        Raises:
            RequestError: ERR_CONFIG_INVALID; inside the operation ERR_CONFLICT.
        """
        payload = well_formed(envelope)
        now_ns = self._time.now_ns()
        if payload.is_expired(now_ns):
            raise _invalid("expires_at", f"it expired at {payload.expires_at.isoformat()}")
        row = ConfigRow(
            revision=payload.revision,
            digest=dsse.payload_digest(dsse.payload_bytes(envelope)),
            envelope=wire.encode(envelope),
            scope=wire.encode(payload.scope),
            published_ns=now_ns,
            expires_ns=min(round(payload.expires_at.timestamp()) * NS_PER_S, INSTANT_MAX_NS),
        )

        def operation(store: Store) -> tuple[ConfigRow, bool, Committed]:
            known = store.config(row.revision)
            saved = row
            if known is not None and known.digest == row.digest:
                saved = replace(row, published_ns=known.published_ns)
            elif latest := store.configs(None, 1):
                _require_growth(row.revision, latest[0].revision)
            entries = dict(sorted({**self._entries, row.revision: _entry(row)}.items())[::-1])
            superseded = _superseded(entries)
            if len(entries) - len(superseded) > IN_FORCE_MAX:
                raise RequestError(
                    ErrorCode.CONFLICT,
                    f"{IN_FORCE_MAX} configurations with different scopes are in force; publish"
                    " one for all, or for a scope that has one",
                )
            old = superseded[SUPERSEDED_KEPT:]
            store.save_config(saved)
            for revision in old:
                store.delete_config(revision)

            def committed() -> None:
                self._keep({**self._entries, row.revision: _entry(row)}, without=old)
                self._waiters.tell_config()

            return saved, known is None, committed

        return operation

    def _keep(self, entries: Mapping[int, _Entry], *, without: Sequence[int] = ()) -> None:
        ordered = sorted(entries.items(), reverse=True)
        self._entries = {revision: one for revision, one in ordered if revision not in without}
        self._generation += 1
        self._found.clear()

    # ── what agents say ──

    async def heard(self, agent: AgentRow, status: ConfigStatus | None) -> None:
        """Write down what an agent says of its configuration, when it says something new."""
        if status is None or status.status is None or status.revision not in self._entries:
            return  # it may be published yet, to a database that was restored
        if self._heard.get(agent.agent_id) == status:
            return
        report = ConfigReportRow(
            revision=status.revision or 0,
            agent_id=agent.agent_id,
            status=status.status,
            reported_ns=self._time.now_ns(),
            document=wire.encode(status),
        )
        await self._writer.write(lambda store: store.save_config_report(report))
        self._heard[agent.agent_id] = status

    async def status(self, revision: int) -> list[dict[str, Any]]:
        """Return what became of a revision on every agent that it is for, and where it came to.

        Raises:
            RequestError: ERR_NOT_FOUND.
        """
        entry = self._entries.get(revision)
        if entry is None:
            raise RequestError(ErrorCode.NOT_FOUND, f"there is no configuration {revision}")
        rows = await self._writer.look(lambda store: store.config_reports(revision))
        reports = {row.agent_id: row for row in rows}
        return [
            self._state(agent, revision, reports.get(agent.agent_id))
            for agent in self._registry.all()
            if agent.agent_id in reports or entry.covers(holder_of(agent))
        ]

    def _state(
        self, agent: AgentRow, revision: int, report: ConfigReportRow | None
    ) -> dict[str, Any]:
        named = {"agent_id": agent.agent_id, "hostname": agent.hostname}
        if report is None:
            is_over = (self.revision_for(agent) or 0) > revision
            return named | {"status": "superseded" if is_over else "pending"}
        said: dict[str, Any] = wire.parse(report.document)
        said.pop("revision", None)
        return named | said | {"reported_at": rfc3339(report.reported_ns)}


def holder_of(agent: AgentRow) -> Holder:
    """Return an agent as scopes see it."""
    inventory = wire.parse(agent.document).get("inventory")
    labels = clean_labels(inventory.get("labels")) if isinstance(inventory, dict) else {}
    return Holder(agent.agent_id, agent.hostname, labels)


def well_formed(envelope: Envelope) -> Payload:
    """Return what an envelope says it holds.

    Raises:
        RequestError: ERR_CONFIG_INVALID, no agent would take it.
    """
    try:
        return inspect(envelope)
    except ConfigRefused as error:
        field = "payload_type" if error.reason is RefusalReason.WRONG_TYPE else "payload"
        raise _invalid(field, str(error)) from error


def _superseded(entries: Mapping[int, _Entry]) -> list[int]:
    """Return the revisions that are no agent's any more, the greatest first."""
    seen: set[bytes] = set()
    is_all_covered = False
    over = []
    for revision, entry in entries.items():
        if is_all_covered or entry.text in seen:
            over.append(revision)
        seen.add(entry.text)
        is_all_covered = is_all_covered or bool(entry.scope.all)
    return over


def _entry(row: ConfigRow) -> _Entry:
    scope = wire.decode_answer(Scope, row.scope)
    return _Entry(row.revision, scope, row.scope, frozenset(scope.agents or ()))


def _require_growth(revision: int, latest: int) -> None:
    if revision <= latest:
        raise RequestError(
            ErrorCode.CONFLICT,
            f"revision {revision} is not after {latest}, the latest; sign it as {latest + 1}",
        )


def _invalid(field: str, message: str) -> RequestError:
    return RequestError(
        ErrorCode.CONFIG_INVALID, f"{field}: {message}", violations=((f"$.{field}", message),)
    )
