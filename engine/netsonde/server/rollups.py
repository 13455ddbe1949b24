"""Sums metrics up by the minute and the hour, and drops what is older than its level keeps.

All of it in small steps, each an operation of its own, so that nobody waits for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from netsonde.clock import NS_PER_S
from netsonde.server.cells import summed
from netsonde.server.store import Store
from netsonde.server.store.metrics import Level, MetricBlock, RollProgress

AGENTS_MAX = 20  # of a window, in one step
BLOCKS_MAX = 60  # read in one step, after which no further agent is begun
DROP_MAX = 200  # blocks or series dropped in one step
BLOCKS_PER_WINDOW_MAX = 4_000  # one agent's: 60 envelopes a minute are allowed, for an hour


@dataclass(frozen=True, slots=True)
class LevelFacts:
    """What a block of a level covers, how long it is kept, and what it is made of."""

    window_ns: int
    kept_ns: int
    source: Level | None = None


LEVELS = {
    Level.RAW: LevelFacts(window_ns=0, kept_ns=2 * 3600 * NS_PER_S),
    Level.MINUTE: LevelFacts(60 * NS_PER_S, 24 * 3600 * NS_PER_S, Level.RAW),
    Level.HOUR: LevelFacts(3600 * NS_PER_S, 90 * 86_400 * NS_PER_S, Level.MINUTE),
}


def step(store: Store, now_ns: int) -> bool:
    """Do one small part of what is to be done; return whether there may be more."""
    return any(
        (
            _roll(store, Level.MINUTE, now_ns),
            _roll(store, Level.HOUR, store.roll_progress(Level.MINUTE).window_ns),
            _drop(store, now_ns),
        )
    )


def _roll(store: Store, level: Level, complete_ns: int) -> bool:
    """Sum up some agents' next window, of those whose blocks before complete_ns are all there."""
    facts = LEVELS[level]
    source = facts.source
    progress = store.roll_progress(level)
    if source is None:
        return False
    first_ns = store.first_metric_block_ns(source, progress.window_ns)
    next_ns = complete_ns if first_ns is None else min(first_ns, complete_ns)
    window_ns = next_ns - next_ns % facts.window_ns
    if window_ns > progress.window_ns:
        progress = RollProgress(window_ns)
        store.save_roll_progress(level, progress)
    end_ns = window_ns + facts.window_ns
    if first_ns is None or end_ns > complete_ns:
        return False
    agents = store.metric_agents(source, window_ns, end_ns, progress.after, AGENTS_MAX)
    done = _roll_agents(store, level, agents, window_ns)
    is_last = done == len(agents) < AGENTS_MAX
    store.save_roll_progress(
        level, RollProgress(end_ns) if is_last else RollProgress(window_ns, agents[done - 1])
    )
    return True


def _roll_agents(store: Store, level: Level, agents: Sequence[int], window_ns: int) -> int:
    """Sum up the window of as many agents as a step may; return how many."""
    facts = LEVELS[level]
    source = facts.source
    read = 0
    for number, agent_id in enumerate(agents):
        if source is None or read >= BLOCKS_MAX:
            return number
        end_ns = window_ns + facts.window_ns
        blocks = store.metric_blocks(source, agent_id, window_ns, end_ns, BLOCKS_PER_WINDOW_MAX)
        ids, body = summed([block.body for block in blocks])
        store.add_metric_block(level, MetricBlock(agent_id, window_ns, body))
        if level is Level.HOUR:
            store.saw_metric_series(ids, window_ns)
        read += len(blocks)
    return len(agents)


def _drop(store: Store, now_ns: int) -> bool:
    """Drop some of what is too old; what is not summed up yet is not."""
    dropped = 0
    for level, facts in LEVELS.items():
        before_ns = now_ns - facts.kept_ns
        for above, its in LEVELS.items():
            if its.source is level:
                before_ns = min(before_ns, store.roll_progress(above).window_ns)
        dropped = max(dropped, store.drop_metric_blocks(level, before_ns, DROP_MAX))
    before_ns = now_ns - LEVELS[Level.HOUR].kept_ns
    dropped = max(dropped, store.drop_metric_series(before_ns, DROP_MAX))
    return dropped == DROP_MAX
