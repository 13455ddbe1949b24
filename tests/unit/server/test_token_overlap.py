"""No history of lost answers locks an agent out, and an old token ends when it should."""

from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from netsonde.clock import NS_PER_S
from netsonde.errors import RequestError
from netsonde.model import RegisterRequest
from netsonde.server.registry import LEGACY_OVERLAP_NS, TOKEN_OVERLAP_NS
from support.stores import Caller, at_once, callers

LOST_MAX = 3  # in a row, before an answer arrives: contract section 3 promises no more
HOLDER = "k" * 32


class Overlap(RuleBasedStateMachine):
    """One agent whose answers get lost; it holds the last token that reached it."""

    def __init__(self) -> None:
        super().__init__()
        self._callers = callers("memory", Path())
        self.caller: Caller = next(self._callers)
        self.agent_id = 0
        self.held = ""
        self.lost: list[str] = []  # since one arrived
        self.ended: dict[str, int] = {}  # tokens that were held, and when they must have ended
        self.is_legacy = False

    def teardown(self) -> None:
        self._callers.close()  # type: ignore[attr-defined]

    @property
    def now_ns(self) -> int:
        return self.caller.plane.time.now_ns()

    @initialize(is_legacy=st.booleans())
    def begin(self, is_legacy: bool) -> None:
        self.is_legacy = is_legacy
        self.held = self.registered()

    def registered(self) -> str:
        request = RegisterRequest(hostname="h", agent_key=None if self.is_legacy else HOLDER)
        agent, token, _ = at_once(
            self.caller.plane.registry.register(request, is_legacy=self.is_legacy)
        )
        assert self.agent_id in (0, agent.agent_id)
        self.agent_id = agent.agent_id
        return token

    def works(self, token: str) -> bool:
        try:
            at_once(self.caller.plane.registry.authenticate(self.agent_id, token))
        except RequestError:
            return False
        return True

    @precondition(lambda self: len(self.lost) < LOST_MAX and not self.is_legacy)
    @rule()
    def register_and_lose_the_answer(self) -> None:
        assert self.works(self.held), "an agent that registers again has used its token before"
        self.lost.append(self.registered())

    @rule()
    def register_and_use_the_new_token(self) -> None:
        old, self.held = self.held, self.registered()
        assert self.works(self.held)
        overlap_ns = LEGACY_OVERLAP_NS if self.is_legacy else TOKEN_OVERLAP_NS
        for token in (old, *self.lost):
            self.ended.setdefault(token, self.now_ns + overlap_ns)
        self.lost.clear()

    @rule(seconds=st.sampled_from([1, 30, 59, 60, 61, 86_400, 10_000_000]))
    def wait(self, seconds: int) -> None:
        self.caller.clock._now_ns += seconds * NS_PER_S  # nobody sleeps on it

    @rule()
    def call(self) -> None:
        assert self.works(self.held), "the token that arrived last is good for ever"

    @rule()
    def guess(self) -> None:
        assert not self.works(self.held + "x")
        assert not self.works("")

    @invariant()
    def the_old_ones_have_ended(self) -> None:
        for token, until_ns in self.ended.items():
            if until_ns <= self.now_ns:
                assert not self.works(token)


TestOverlap = Overlap.TestCase
TestOverlap.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_answers_lost_soon_after_a_rotation_drop_no_token_in_use() -> None:
    machine = Overlap()
    try:
        machine.begin(is_legacy=False)
        machine.register_and_lose_the_answer()
        machine.register_and_use_the_new_token()
        for _ in range(4):
            machine.register_and_lose_the_answer()
            machine.lost.clear()
        machine.call()
    finally:
        machine.teardown()
