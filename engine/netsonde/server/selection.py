"""Who measures a check: anybody, agents that carry labels, or agents by name."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Struct

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import MINTED_ID_MAX
from netsonde.server.about import counted, within
from netsonde.server.registry import AgentRegistry, matches_labels
from netsonde.server.store import Store
from netsonde.server.store.tasks import ANY_QUEUE, pinned_queue

AGENTS_MAX = 1_000  # named or counted in one check


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who measures: anybody, agents that carry labels, or agents by id or hostname."""

    any: bool = False
    agents: Annotated[tuple[int | str, ...], counted(0, AGENTS_MAX)] = ()
    labels: dict[str, str] = {}
    count: Annotated[int, within(1, AGENTS_MAX)] | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class Carrier:
    """An agent as the scheduler sees it."""

    agent_id: int
    hostname: str
    labels: Mapping[str, str]
    is_legacy: bool = False


def carriers_of(registry: AgentRegistry) -> list[Carrier]:
    """Return the agents that checks may be given to."""
    return [
        Carrier(row.agent_id, row.hostname, registry.labels(row.agent_id), row.is_legacy)
        for row in registry.all()
        if not row.is_disabled
    ]


def check_selection(select: Selection) -> None:
    """Insist that a selection says one thing.

    Raises:
        RequestError: naming the field and what is allowed.
    """
    ways = [bool(select.agents), bool(select.labels), select.any]
    if sum(ways) > 1:
        raise _refusal("select", "select takes one of any, agents and labels")
    if select.all and select.count is not None:
        raise _refusal("select", "select takes one of count and all")
    if select.any and (select.all or (select.count or 1) > 1):
        raise _refusal("select", "any is one agent: for more say labels, {} for every agent")
    if len(select.agents) > AGENTS_MAX:
        raise _refusal("select.agents", f"at most {AGENTS_MAX} agents are allowed")
    if any(isinstance(one, int) and not 0 < one <= MINTED_ID_MAX for one in select.agents):
        raise _refusal("select.agents", f"an agent's id is 1 to {MINTED_ID_MAX}")


def chosen(select: Selection, check_id: int, carriers: Collection[Carrier]) -> Sequence[Carrier]:
    """Choose the agents of a standing check: with a count, those that come first by a hash.

    Whoever joins or leaves moves no more of the work than its own share.
    """
    matching = _matching(select, carriers)
    if select.count is None:
        return matching
    return sorted(matching, key=lambda one: _draw(check_id, one.agent_id))[: select.count]


def queues_of_tick(
    store: Store, select: Selection, carriers: Collection[Carrier], tick: int
) -> Sequence[int]:
    """Return the queue of each task of a tick, before targets."""
    is_shared = not select.agents and not select.all and (select.count or 1) == 1
    if is_shared:
        return [store.label_queue(_canonical(select.labels)) if select.labels else ANY_QUEUE]
    matching = _matching(select, carriers)
    return _pinned(matching, select.count or len(matching), tick)


def queues_of(carriers: Iterable[Carrier]) -> Sequence[int]:
    """Return the queues that only these agents are granted from."""
    return [pinned_queue(one.agent_id) for one in carriers]


def _matching(select: Selection, carriers: Collection[Carrier]) -> list[Carrier]:
    if select.agents:
        names = frozenset(select.agents)
        return [one for one in carriers if _is_named(one, names)]
    return [one for one in carriers if matches_labels(select.labels, one.labels)]


def _pinned(carriers: Sequence[Carrier], count: int, tick: int) -> Sequence[int]:
    """Pin to count of these agents; with fewer than all, take turns from tick to tick."""
    if not carriers:
        return []
    ordered = sorted(carriers, key=lambda one: one.agent_id)
    if count >= len(ordered):
        return [pinned_queue(one.agent_id) for one in ordered]
    start = tick * count % len(ordered)
    turned = ordered[start:] + ordered[:start]
    return [pinned_queue(one.agent_id) for one in turned[:count]]


def _is_named(carrier: Carrier, names: frozenset[int | str]) -> bool:
    return carrier.agent_id in names or str(carrier.agent_id) in names or carrier.hostname in names


def _canonical(labels: Mapping[str, str]) -> bytes:
    return wire.encode(dict(sorted(labels.items())))


def _draw(check_id: int, agent_id: int) -> bytes:
    return hashlib.sha256(f"{check_id}/{agent_id}".encode()).digest()


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
