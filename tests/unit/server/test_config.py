from pathlib import Path
from typing import Any

import pytest

from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.server.config import DEFAULT_TERMS_MS, ServerConfig, endpoint, is_loopback

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"listen": "8080"}, "listen must be host:port"),
        ({"listen": "127.0.0.1:70000"}, "0 to 65535"),
        ({"operator_listen": "x"}, "operator_listen must be host:port"),
        ({"operator_listen": "[::]:8090"}, "name an operator_token_file"),
        ({"enrolment_token": "short"}, "at least 16"),
        ({"terms_ms": dict(DEFAULT_TERMS_MS) | {TaskKind.DNS: 1}}, "terms_ms[dns] must be 100"),
        ({"terms_ms": {TaskKind.DNS: 1000}}, "terms_ms[http]"),
        ({"grace_ms": 1}, "grace_ms must be 10"),
        ({"max_lease_ms": 1000}, "max_lease_ms must be 90000"),
        ({"max_attempts": 0}, "max_attempts must be 1"),
        ({"claim_wait_ms": 60_000}, "claim_wait_ms must be 0 to 55000"),
        ({"legacy_hold_ms": 30_000}, "legacy_hold_ms"),
        ({"requeue_cap_ms": 1}, "requeue_cap_ms"),
        ({"heartbeat_interval_ms": 1}, "heartbeat_interval_ms"),
        ({"quota_scale": 0}, "quota_scale"),
        ({"standing_term_ms": 1}, "standing_term_ms must be 1000 to"),
        ({"offline_ms": -1}, "offline_ms must be 0 to"),
        ({"audit_ms": 1}, "audit_ms must be 3600000 to"),
        ({"connections_max": 0}, "connections_max must be 1 to"),
        ({"retain_results_ms": 59_999}, "retain_results_ms must be 0 (no bound) or 60000 to"),
        ({"retain_dead_letters_ms": -1}, "retain_dead_letters_ms must be 0 (no bound) or"),
        ({"max_database_bytes": 1}, "max_database_bytes must be 0 (no bound) or 16777216 to"),
        ({"storage_reserve_bytes": -1}, "storage_reserve_bytes must be 0 to"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(**changes)
    assert named in str(caught.value)


def test_enrolment_is_open_on_loopback_only() -> None:
    assert ServerConfig().is_enrolment_open
    assert not ServerConfig(enrolment_token=TOKEN).is_enrolment_open
    assert not ServerConfig(listen="0.0.0.0:1", enrolment_token=TOKEN).is_enrolment_open
    assert not ServerConfig(listen="0.0.0.0:1").is_enrolment_open, "with tokens made later"


def test_tokens_are_not_shown() -> None:
    assert TOKEN not in repr(ServerConfig(enrolment_token=TOKEN))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:0", ("::1", 0)),
        (":8080", ("127.0.0.1", 8080)),
        ("host.example:9", ("host.example", 9)),
    ],
)
def test_endpoint(text: str, expected: tuple[str, int]) -> None:
    assert endpoint("listen", text) == expected


@pytest.mark.parametrize("text", ["127.9.9.9:1", "[::1]:1", "localhost:1", ":1"])
def test_loopback(text: str) -> None:
    assert is_loopback(text)


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "host.example:1", "192.0.2.1:1"])
def test_not_loopback(text: str) -> None:
    assert not is_loopback(text)


def test_operator_token_comes_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    settings = ServerConfig(operator_token_file=path)
    with pytest.raises(ConfigError, match="cannot be read"):
        settings.operator_token()
    path.write_text("short")
    with pytest.raises(ConfigError, match="at least 16"):
        settings.operator_token()
    path.write_text(f"{TOKEN}\n")
    assert settings.operator_token() == TOKEN
    assert ServerConfig().operator_token() is None
