"""The listeners' certificates under a clock of the test's own."""

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import ConfigError
from netsonde.server.certificates import (
    EXPIRES_SOON_NS,
    LOOK_EVERY_NS,
    Certificates,
    valid_until_ns,
    watch_forever,
)
from netsonde.server.config import ServerConfig
from netsonde.tls import ServerTls
from support.authority import Authority, Identity

DAY_NS = 86_400 * NS_PER_S


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def identity(authority: Authority) -> Identity:
    return authority.server("control.test", days=20)


@pytest.fixture
def clock() -> ManualClock:
    clock = ManualClock()
    clock.step_realtime(int(datetime.now(UTC).timestamp()) * NS_PER_S - clock.realtime_ns())
    return clock


def config(identity: Identity) -> ServerConfig:
    return ServerConfig(tls=ServerTls(certificate=identity.certificate, key=identity.key))


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]


def test_a_listener_without_files_is_plain(identity: Identity, clock: ManualClock) -> None:
    certificates = Certificates(config(identity), clock)
    assert certificates.agents is not None
    assert certificates.operators is None


def test_files_that_cannot_be_used_are_refused_at_the_start(
    identity: Identity, clock: ManualClock
) -> None:
    identity.key.unlink()
    with pytest.raises(ConfigError, match=r"key file .* cannot be read"):
        Certificates(config(identity), clock)


def test_the_end_of_a_certificate_is_read_from_its_file(
    identity: Identity, clock: ManualClock, tmp_path: Path
) -> None:
    until_ns = valid_until_ns(identity.certificate)
    assert until_ns is not None
    assert abs(until_ns - clock.realtime_ns() - 20 * DAY_NS) < 60 * NS_PER_S
    nonsense = tmp_path / "nonsense.pem"
    for text in ("AAA", "AAAA", "MAA="):
        nonsense.write_text(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        assert valid_until_ns(nonsense) is None


async def test_the_end_is_warned_of_once_before_and_once_after(
    identity: Identity, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(config(identity), clock)
    until_ns = valid_until_ns(identity.certificate)
    assert until_ns is not None
    assert actions(caplog) == []
    clock.step_realtime(until_ns - clock.realtime_ns() - EXPIRES_SOON_NS)
    for _ in range(3):
        await certificates.look(at_once=False)
    assert actions(caplog) == ["certificate_expires"]
    clock.step_realtime(EXPIRES_SOON_NS)
    for _ in range(3):
        await certificates.look(at_once=False)
    assert actions(caplog) == ["certificate_expires", "certificate_expired"]
    assert str(identity.certificate) in caplog.text


async def test_a_renewal_is_told_and_ends_the_warning(
    authority: Authority,
    identity: Identity,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    authority.server("control.test", into=identity, days=1)
    certificates = Certificates(config(identity), clock)
    authority.server("control.test", into=identity, days=30)
    await certificates.look(at_once=False)
    await certificates.look(at_once=False)
    assert actions(caplog) == ["certificate_expires", "tls_reloaded"]
    clock.step_realtime(25 * DAY_NS)
    await certificates.look(at_once=False)
    assert actions(caplog)[2:] == ["certificate_expires"]


async def test_files_are_looked_at_in_turn_and_when_asked(
    identity: Identity, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(config(identity), clock)
    looks: list[bool] = []

    async def look(*, at_once: bool) -> None:
        looks.append(at_once)

    monkeypatch.setattr(certificates, "look", look)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch_forever(certificates))
        await clock.advance(LOOK_EVERY_NS)
        await clock.settle()
        assert looks == [False]
        certificates.reload()
        await clock.settle()
        assert looks == [False, True]
        await clock.advance(LOOK_EVERY_NS)
        await clock.settle()
        assert looks == [False, True, False]
        task.cancel()
