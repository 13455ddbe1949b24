"""`netsonde server run`'s own options."""

import pytest
from click.testing import CliRunner

from netsonde.cli import server
from netsonde.cli.root import main
from netsonde.cli.server import read_terms
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.server import ServerConfig
from netsonde.server.config import DEFAULT_TERMS_MS


def test_terms_are_read_by_kind_and_the_rest_keep_theirs() -> None:
    assert read_terms([]) == DEFAULT_TERMS_MS
    assert read_terms(["ping=2m", "dns = 500ms"]) == {
        **DEFAULT_TERMS_MS,
        TaskKind.PING: 120_000,
        TaskKind.DNS: 500,
    }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["ping"], "--term must be NAME=VALUE, not 'ping'"),
        (["pong=1s"], "--term takes one of dns, http, tcp, ping, trace, not 'pong'"),
        (["ping=1s", "ping=2s"], "--term names ping twice"),
        (["ping=soon"], "--term ping: 'soon' is not a duration such as 500ms, 2s or 1m"),
        (["ping=99ms"], "--term ping must be from 100ms to 1h, not 99ms"),
        (["trace=61m"], "--term trace must be from 100ms to 1h, not 61m"),
    ],
)
def test_a_bad_term_is_one_sentence(given: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_terms(given)
    assert str(caught.value) == sentence

    done = CliRunner().invoke(
        main, ["server", "run", "--memory", *(f"--term={text}" for text in given)]
    )
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_the_terms_reach_the_control_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerConfig] = []

    async def serve_nothing(config: ServerConfig) -> None:
        seen.append(config)

    monkeypatch.setattr(server, "_serve_until_stopped", serve_nothing)

    done = CliRunner().invoke(main, ["server", "run", "--memory", "--term", "trace=1h"])

    assert done.exit_code == 0, done.output
    assert seen[0].terms_ms[TaskKind.TRACE] == 3_600_000
    assert seen[0].max_lease_ms == 3_600_000  # a lease may last its own term


def test_standing_leases_are_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerConfig] = []

    async def serve_nothing(config: ServerConfig) -> None:
        seen.append(config)

    monkeypatch.setattr(server, "_serve_until_stopped", serve_nothing)
    run = CliRunner().invoke
    assert run(main, ["server", "run", "--memory"]).exit_code == 0
    given = ["--standing-term", "20m", "--offline", "2d"]
    assert run(main, ["server", "run", "--memory", *given]).exit_code == 0
    assert [(one.standing_term_ms, one.offline_ms) for one in seen] == [
        (3_600_000, 86_400_000),
        (1_200_000, 172_800_000),
    ]
    refused = run(main, ["server", "run", "--memory", "--offline", "32d"])
    assert refused.exit_code == 2
    assert "offline_ms must be 0 to" in refused.stderr


def test_bounds_reach_the_control_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerConfig] = []

    async def serve_nothing(config: ServerConfig) -> None:
        seen.append(config)

    monkeypatch.setattr(server, "_serve_until_stopped", serve_nothing)
    given = ("--retain-results=7d", "--max-database=20GiB", "--storage-reserve=1GiB")

    for words in ((), given, ("--retain-dead-letters=0",)):
        done = CliRunner().invoke(main, ["server", "run", "--memory", *words])
        assert done.exit_code == 0, done.output

    default, bounded, kept = seen
    assert default == ServerConfig()
    assert (bounded.retain_results_ms, bounded.max_database_bytes) == (7 * 86_400_000, 20 << 30)
    assert bounded.storage_reserve_bytes == 1 << 30
    assert kept.retain_dead_letters_ms == 0
