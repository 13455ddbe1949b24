"""Agents: who they are, the tokens they prove it with, what labels they carry.

The store is the truth; since this process is its only owner, every agent is also kept here, where
requests look it up without a query.
"""

import hashlib
import hmac
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from netsonde import wire
from netsonde.clock import NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import MINTED_ID_MAX, RegisterRequest
from netsonde.server.config import ServerConfig
from netsonde.server.enrolment import Admission, Enrolment
from netsonde.server.leasing import Change, LeasingPolicy, ServerTime
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.agents import AgentRow, TokenRow
from netsonde.server.tokens import new_token, token_digest

TOKEN_OVERLAP_NS = 60 * NS_PER_S  # the old token's life after the new one is first used
LEGACY_OVERLAP_NS = 24 * 3600 * NS_PER_S  # an original agent never learns of a new token
TOKENS_MAX = 4  # lost answers in a row that an agent survives
AGENTS_MAX = 100_000  # rows kept in memory: about 2 KiB each, DOCUMENT_MAX_BYTES at worst
DOCUMENT_MAX_BYTES = 16 << 10  # of an agent's account of itself; a host with 250 addresses has 12
INSTANCE_MAX_CHARS = 128
LABELS_MAX = 64
LABEL_MAX_CHARS = 128
FLUSH_ROWS = 500  # at once, so that reports wait for milliseconds
FLUSH_SEEN_NS = 10 * NS_PER_S  # heartbeats are not worth a commit each
HOSTNAME_MAX_CHARS = 255  # what the original's interface allows

ID_DIGITS_MAX = 16  # 2^53 has 16

AgentChange = Callable[[AgentRow], AgentRow]


class AgentRegistry:
    """Registers, authenticates and describes agents.

    `on_change` is called when checks may have to choose their agents anew.
    """

    def __init__(
        self, config: ServerConfig, time: ServerTime, policy: LeasingPolicy, writer: StoreWriter
    ) -> None:
        self._is_open = config.is_enrolment_open
        self._enrolment = Enrolment(config)
        self._time = time
        self._policy = policy
        self._writer = writer
        self._agents: dict[int, AgentRow] = {}
        self._order: list[int] = []  # their ids, ascending
        self._named: dict[str, list[int]] = {}  # their ids by hostname, ascending
        self._labels: dict[int, dict[str, str]] = {}
        self._seen: dict[int, int] = {}
        self._flushed_ns = time.now_ns()
        self.on_change: Callable[[], None] = lambda: None

    def load(self, store: Store) -> None:
        """Read every agent."""
        for agent in store.agents(0, AGENTS_MAX):
            self._keep(agent)

    def _keep(self, agent: AgentRow) -> None:
        known = self._agents.get(agent.agent_id)
        if known is None or _choice(known) != _choice(agent):
            self.on_change()
        if known is None:
            insort(self._order, agent.agent_id)
        if known is None or known.hostname != agent.hostname:
            self._rename(known, agent)
        self._agents[agent.agent_id] = agent
        self._labels[agent.agent_id] = wire.parse(agent.labels)

    def _rename(self, known: AgentRow | None, agent: AgentRow) -> None:
        if known is not None:
            others = self._named[known.hostname]
            others.remove(known.agent_id)
            if not others:
                del self._named[known.hostname]
        insort(self._named.setdefault(agent.hostname, []), agent.agent_id)

    # ── reading ──

    def get(self, agent_id: int) -> AgentRow | None:
        """Return one agent."""
        return self._agents.get(agent_id)

    def all(self) -> list[AgentRow]:
        """Return every agent, by id."""
        return [self._agents[agent_id] for agent_id in self._order]

    def page(self, after: int, limit: int) -> list[AgentRow]:
        """Return agents by id, those above `after`."""
        start = bisect_right(self._order, after)
        return [self._agents[agent_id] for agent_id in self._order[start : start + limit]]

    def labels(self, agent_id: int) -> Mapping[str, str]:
        """Return an agent's labels."""
        return self._labels.get(agent_id, {})

    def last_seen_ns(self, agent: AgentRow) -> int:
        """Return when an agent was last heard of."""
        return max(agent.last_seen_ns, self._seen.get(agent.agent_id, 0))

    def find(self, name: str) -> list[int]:
        """Return the ids of the agents that an id or a hostname names."""
        is_id = name.isascii() and name.isdecimal() and len(name) <= ID_DIGITS_MAX
        if is_id and int(name) in self._agents:
            return [int(name)]
        return list(self._named.get(name, ()))

    # ── register ──

    async def register(
        self, request: RegisterRequest, *, is_legacy: bool
    ) -> tuple[AgentRow, str, list[Change]]:
        """Give an agent its id and a new token.

        A new instance of a known agent has forgotten what the old one held: that goes back.

        Raises:
            RequestError: ERR_ENROLMENT_REQUIRED, ERR_FORBIDDEN, ERR_UNAVAILABLE.
        """
        if not self._is_open:  # who is refused has nobody wait for a commit
            await self._writer.read(lambda store: self._admitted(store, request))
        token = new_token()
        digest = token_digest(token)

        def operation(store: Store) -> tuple[AgentRow, list[Change]]:
            now_ns = self._time.now_ns()
            known, admission = self._admitted(store, request)
            agent = self._described(store, known, request, is_legacy=is_legacy, now_ns=now_ns)
            if not agent.has_operator_labels:
                labels = admission.label(_own_labels(request), LABELS_MAX)
                agent = replace(agent, labels=wire.encode(labels))
            agent = replace(agent, tokens=_with_new(agent, TokenRow(digest), now_ns))
            store.save_agent(agent)
            admission.note(store, agent.identity, now_ns)
            changes = self._orphaned(store, known, agent, now_ns)
            store.apply(changes, now_ns)
            store.count("returned", len(changes))
            return agent, changes

        agent, changes = await self._writer.write(operation)
        self._keep(agent)
        self._seen[agent.agent_id] = self._time.now_ns()
        return agent, token, changes

    def _admitted(
        self, store: Store, request: RegisterRequest
    ) -> tuple[AgentRow | None, Admission]:
        """Return the agent as it is known, and that it may register."""
        identity, now_ns = identity_of(request), self._time.now_ns()
        known = None if identity is None else store.agent_by_identity(identity)
        admission = self._enrolment.admit(
            store, request, identity, is_known=known is not None, now_ns=now_ns
        )
        if known is not None and known.is_disabled:
            raise RequestError(ErrorCode.FORBIDDEN, "this agent is disabled by an operator")
        return known, admission

    def _described(
        self,
        store: Store,
        known: AgentRow | None,
        request: RegisterRequest,
        *,
        is_legacy: bool,
        now_ns: int,
    ) -> AgentRow:
        document = _document(request)
        instance_id = (request.instance_id or "")[:INSTANCE_MAX_CHARS] or None
        if known is None:
            if len(self._agents) >= AGENTS_MAX:
                raise RequestError(ErrorCode.UNAVAILABLE, f"{AGENTS_MAX} agents are registered")
            agent_id = store.new_agent_id()
            return AgentRow(
                agent_id=agent_id,
                identity=identity_of(request) or f"anonymous:{agent_id}",
                hostname=(request.hostname or f"agent-{agent_id}")[:HOSTNAME_MAX_CHARS],
                is_legacy=is_legacy,
                registered_ns=now_ns,
                last_seen_ns=now_ns,
                instance_id=instance_id,
                document=document,
            )
        return replace(
            known,
            hostname=(request.hostname or known.hostname)[:HOSTNAME_MAX_CHARS],
            is_legacy=is_legacy,
            last_seen_ns=now_ns,
            instance_id=instance_id,
            document=document,
        )

    def _orphaned(
        self, store: Store, known: AgentRow | None, agent: AgentRow, now_ns: int
    ) -> list[Change]:
        if known is None or agent.instance_id is None or known.instance_id == agent.instance_id:
            return []
        return [
            self._policy.give_back(held, now_ns, keeps_lease=True)
            for held in store.held_by(agent.agent_id)
        ]

    # ── authenticate ──

    async def authenticate(self, agent_id: int, token: str) -> AgentRow:
        """Return the agent that this token proves.

        Raises:
            RequestError: ERR_UNAUTHORIZED, ERR_TOKEN_EXPIRED, ERR_FORBIDDEN.
        """
        agent, position, digest = self._proven(agent_id, token)
        now_ns = self._time.now_ns()
        self._seen[agent_id] = now_ns
        if not agent.tokens[position].is_used:
            agent = await self.update(agent_id, lambda row: _first_use(row, digest, now_ns))
        return agent

    def check(self, agent_id: int, token: str) -> None:
        """Look whether a token is an agent's, without taking it as used.

        Raises:
            RequestError: as `authenticate`.
        """
        self._proven(agent_id, token)

    def _proven(self, agent_id: int, token: str) -> tuple[AgentRow, int, bytes]:
        agent = self._agents.get(agent_id)
        digest = token_digest(token)
        # Every token is compared, known agent or not, so that time tells nothing.
        tokens = agent.tokens if agent is not None else ()
        matches = [hmac.compare_digest(row.digest, digest) for row in tokens]
        if agent is None or not any(matches):
            raise RequestError(ErrorCode.UNAUTHORIZED, "unknown agent or wrong token")
        self.admit(agent_id)  # first: the tokens of an agent that was revoked have ended, too
        position = matches.index(True)
        now_ns = self._time.now_ns()
        until_ns = agent.tokens[position].until_ns
        if until_ns is not None and until_ns <= now_ns:
            raise RequestError(ErrorCode.TOKEN_EXPIRED, "this token was replaced: register again")
        return agent, position, digest

    def admit(self, agent_id: int) -> None:
        """Refuse an agent that an operator has disabled.

        Raises:
            RequestError: ERR_FORBIDDEN.
        """
        agent = self._agents.get(agent_id)
        if agent is not None and agent.is_disabled:
            raise RequestError(ErrorCode.FORBIDDEN, "this agent is disabled by an operator")

    async def update(self, agent_id: int, change: AgentChange) -> AgentRow:
        """Change an agent's row.

        Raises:
            RequestError: ERR_NOT_FOUND.
        """

        def operation(store: Store) -> AgentRow:
            return update_agent(store, agent_id, change)

        agent = await self._writer.write(operation)
        self._keep(agent)
        return agent

    def keep(self, agent: AgentRow) -> None:
        """Take over a row that was saved by an operation of somebody else's."""
        self._keep(agent)

    # ── last seen ──

    async def flush_seen(self, *, at_once: bool = False) -> None:
        """Write down when agents were last heard of, now and then."""
        now_ns = self._time.now_ns()
        if not self._seen or (not at_once and now_ns - self._flushed_ns < FLUSH_SEEN_NS):
            return
        self._flushed_ns = now_ns
        waiting = list(self._seen.items())
        for start in range(0, len(waiting), FLUSH_ROWS):
            seen = dict(waiting[start : start + FLUSH_ROWS])
            await self._writer.write(partial(_save_seen, seen), len(seen))
            self._wrote_seen(seen)

    def _wrote_seen(self, seen: Mapping[int, int]) -> None:
        for agent_id, seen_ns in seen.items():
            if self._seen.get(agent_id) == seen_ns:  # not heard of meanwhile
                del self._seen[agent_id]
            agent = self._agents.get(agent_id)
            if agent is not None:
                self._agents[agent_id] = replace(agent, last_seen_ns=seen_ns)


def _save_seen(seen: Mapping[int, int], store: Store) -> None:
    store.saw_agents(seen)


def _choice(agent: AgentRow) -> tuple[object, ...]:
    """Return what checks choose an agent by."""
    return agent.hostname, agent.labels, agent.is_disabled, agent.is_legacy


def update_agent(store: Store, agent_id: int, change: AgentChange) -> AgentRow:
    """Apply change to a stored agent.

    Raises:
        RequestError: ERR_NOT_FOUND.
    """
    agent = store.agent(agent_id) if 0 < agent_id <= MINTED_ID_MAX else None
    if agent is None:
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no agent {agent_id}")
    changed = change(agent)
    store.save_agent(changed)
    return changed


def clean_labels(given: Any) -> dict[str, str]:
    """Keep what is a label; the rest of an agent's account of itself is not an error."""
    if not isinstance(given, dict):
        return {}
    fitting = {
        name: value
        for name, value in given.items()
        if isinstance(name, str)
        and isinstance(value, str)
        and 0 < len(name) <= LABEL_MAX_CHARS
        and len(value) <= LABEL_MAX_CHARS
    }
    return dict(sorted(fitting.items())[:LABELS_MAX])


def _own_labels(request: RegisterRequest) -> dict[str, str]:
    return clean_labels(request.inventory.get("labels"))


def matches_labels(wanted: Mapping[str, str], carried: Mapping[str, str]) -> bool:
    """Whether an agent that carries these labels has all that are wanted."""
    return all(carried.get(name) == value for name, value in wanted.items())


def _document(request: RegisterRequest) -> bytes:
    """Write an agent's account of itself; one that is too long, or no JSON of ours, is left out."""
    try:
        document = wire.encode(
            {
                "version": request.version,
                "capacities": request.capacities,
                "inventory": request.inventory,
            }
        )
    except TypeError:  # a number that has no 64 bits
        return b"{}"
    return document if len(document) <= DOCUMENT_MAX_BYTES else b"{}"


def identity_of(request: RegisterRequest) -> str | None:
    """Name an agent by its key, hashed since it is a secret, or an original one by its host."""
    if request.agent_key:
        return f"key:{hashlib.sha256(request.agent_key.encode('utf-8', 'replace')).hexdigest()}"
    if request.hostname:
        return f"host:{request.hostname[:HOSTNAME_MAX_CHARS]}"
    return None


def _with_new(agent: AgentRow, token: TokenRow, now_ns: int) -> tuple[TokenRow, ...]:
    """Put a new token before the old ones, whose order stays; the one in use is never dropped."""
    alive = [row for row in agent.tokens if row.until_ns is None or row.until_ns > now_ns]
    if agent.is_legacy:
        limit_ns = now_ns + LEGACY_OVERLAP_NS
        alive = [replace(row, until_ns=row.until_ns or limit_ns) for row in alive]
    in_use = next((row.digest for row in alive if row.is_used), None)  # the newest that was used
    others = [row.digest for row in alive if row.digest != in_use]
    dropped = others[TOKENS_MAX - (1 if in_use is None else 2) :]
    return (token, *(row for row in alive if row.digest not in dropped))


def _first_use(agent: AgentRow, digest: bytes, now_ns: int) -> AgentRow:
    """Note that a token was used for the first time: what is older ends soon."""
    position = next((at for at, row in enumerate(agent.tokens) if row.digest == digest), None)
    if position is None:
        return agent
    limit_ns = now_ns + TOKEN_OVERLAP_NS
    newer = agent.tokens[:position]
    used = replace(agent.tokens[position], is_used=True)
    older = [
        row if row.until_ns is not None else replace(row, until_ns=limit_ns)
        for row in agent.tokens[position + 1 :]
    ]
    return replace(agent, tokens=(*newer, used, *older))
