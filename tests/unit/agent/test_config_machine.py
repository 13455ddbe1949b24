"""Any history of offers, failures, crashes and restarts: what is in force, and what never is."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netsonde import wire
from netsonde.agent import kept_config
from netsonde.agent.config_applier import ConfigApplier
from netsonde.agent.config_keeper import ConfigKeeper
from netsonde.ceiling import Ceiling
from netsonde.clock import ManualClock
from netsonde.control_plane.calls import ConfigAnswer
from netsonde.dsse import SigningKey, TrustedKeys
from netsonde.errors import StorageError
from netsonde.remote_config import Holder, RemoteConfig
from support.configs import KEY, OTHER_KEY, envelope

REVISIONS = st.integers(1, 6)
VARIANTS = st.integers(1, 2)  # different bytes under one number
Offer = tuple[int, int]


class Died(BaseException):
    """The process ends here."""


class Nobody:
    """A control plane that is never asked: the test hands answers in."""

    async def config(self, etag: str | None) -> ConfigAnswer | None:
        raise AssertionError("nothing is fetched here")


class ConfigMachine(RuleBasedStateMachine):
    """The model knows what was in force last, and which offers the process did not survive."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.floor: Offer | None = None
        self.in_force: Offer | None = None
        self.crashed: set[Offer] = set()
        self.interrupted: Offer | None = None  # the last one that the host went down with
        self.boot = 1
        self.values: RemoteConfig | None = None  # that are set, None: the settings' own
        self.trouble: BaseException | None = None
        self.disk_fails_at: int | None = None

    @initialize()
    def begin(self) -> None:
        self.save = kept_config.save
        self.patch.setattr(kept_config, "save", self._save)
        self.patch.setattr("os.fsync", lambda _: None)  # no power is lost here
        self._start()

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    def _save(self, *args: Any) -> None:
        if self.disk_fails_at is not None:
            self.disk_fails_at -= 1
            if self.disk_fails_at == 0:
                raise StorageError("cannot write config.json: Input/output error")
        self.save(*args)

    def _start(self) -> None:
        self.values = None
        path = self.folder / "config.json"
        keys = TrustedKeys([KEY.public])
        clock = ManualClock()
        memory = kept_config.ConfigMemory(path, f"boot-{self.boot}")
        applier = ConfigApplier(clock, memory, keys, Ceiling())
        applier.prepare = self._prepare
        applier.holder = lambda: Holder(7, "h", {})
        self.keeper = ConfigKeeper(clock, Nobody(), applier, Random(1))
        self.keeper.start()

    def _prepare(self, values: RemoteConfig) -> Callable[[], None]:
        def commit() -> None:
            trouble, self.trouble = self.trouble, None
            if trouble is not None:
                raise trouble
            self.values = values if values != RemoteConfig() else None

        return commit

    def _offer(self, offer: Offer, key: SigningKey = KEY) -> None:
        revision, variant = offer
        sealed = envelope(revision, {"target_starts_per_s": variant}, key)
        asyncio.run(self.keeper._take(wire.encode(sealed)))

    def _may_be(self, offer: Offer) -> bool:
        """Whether an offer is to be taken."""
        if offer in self.crashed:
            return False
        return self.floor is None or offer[0] > self.floor[0] or offer == self.floor

    @rule(revision=REVISIONS, variant=VARIANTS)
    def offer(self, revision: int, variant: int) -> None:
        offer = revision, variant
        self._offer(offer)
        if self._may_be(offer):
            self.floor = self.in_force = offer
            self._forget_interrupted()

    @rule(revision=REVISIONS, variant=VARIANTS)
    def strangers_offer(self, revision: int, variant: int) -> None:
        self._offer((revision, variant), OTHER_KEY)

    @rule(revision=REVISIONS, variant=VARIANTS)
    def offer_that_fails(self, revision: int, variant: int) -> None:
        offer = revision, variant
        self.trouble = ValueError("boom")
        self._offer(offer)
        if self.trouble is not None:  # it was not so much as tried
            self.trouble = None
            assert not self._may_be(offer) or offer == self.in_force

    @rule(revision=REVISIONS, variant=VARIANTS, write=st.integers(1, 2))
    def offer_on_a_bad_disk(self, revision: int, variant: int, write: int) -> None:
        offer = revision, variant
        self.disk_fails_at = write
        self._offer(offer)
        is_hit = self.disk_fails_at <= 0
        self.disk_fails_at = None
        if is_hit and write == 2:
            self._restart_after_half_a_write(offer)

    def _restart_after_half_a_write(self, offer: Offer) -> None:
        """Only the second write failed: whoever starts next thinks that this one crashed."""
        self.crashed.add(offer)
        self.restart()

    @rule(revision=REVISIONS, variant=VARIANTS)
    def offer_that_ends_the_process(self, revision: int, variant: int) -> None:
        offer = revision, variant
        self.trouble = Died()
        try:
            self._offer(offer)
        except Died:
            self.crashed.add(offer)
        self.trouble = None
        self.restart()

    @rule(revision=REVISIONS, variant=VARIANTS)
    def power_cut(self, revision: int, variant: int) -> None:
        """The host goes down in the midst of an offer: once that is nobody's fault."""
        offer = revision, variant
        self.trouble = Died()
        try:
            self._offer(offer)
        except Died:
            if self.interrupted == offer:
                self.crashed.add(offer)
            self.interrupted = offer
        self.trouble = None
        self.boot += 1
        self.restart()

    @rule()
    def restart(self) -> None:
        self._start()
        is_lost = self.floor in self.crashed
        self.in_force = None if is_lost else self.floor
        self._forget_interrupted()

    def _forget_interrupted(self) -> None:
        """What is in force and what is older needs no second chance."""
        if self.interrupted and self.in_force and self.interrupted[0] <= self.in_force[0]:
            self.interrupted = None

    @rule()
    def restart_that_ends_the_process(self) -> None:
        self.trouble = Died()
        try:
            self._start()
        except Died:
            assert self.floor is not None
            self.crashed.add(self.floor)
        self.trouble = None
        self.restart()

    @invariant()
    def what_is_set_is_what_is_in_force(self) -> None:
        rate = None if self.values is None else self.values.target_starts_per_s
        assert rate == (None if self.in_force is None else self.in_force[1])
        if hasattr(self, "keeper"):
            status = self.keeper.status()
            applied = None if status is None else status.applied
            assert applied == (None if self.in_force is None else self.in_force[0])


TestConfigMachine = ConfigMachine.TestCase
TestConfigMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
