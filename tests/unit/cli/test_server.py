"""`netsonde server run`'s own options."""

import resource
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsonde.cli import server
from netsonde.cli.root import main
from netsonde.cli.server import raise_descriptor_limit, read_terms
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.server import ServerConfig
from netsonde.server.config import DEFAULT_TERMS_MS
from netsonde.tls import ServerTls


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
    assert "'--offline': must be 0 to 31d, not 32d" in refused.stderr


def test_each_listener_has_its_own_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerConfig] = []

    async def serve_nothing(config: ServerConfig) -> None:
        seen.append(config)

    monkeypatch.setattr(server, "_serve_until_stopped", serve_nothing)
    words = (
        "server run --memory --connections-max 7 --tls-cert a.pem --tls-key a.key"
        " --operator-tls-cert o.pem --operator-tls-key o.key --operator-tls-client-ca ca.pem"
        " --operator-tls-client-auth optional"
    )
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    assert seen[0].tls == ServerTls(certificate=Path("a.pem"), key=Path("a.key"))
    assert seen[0].operator_tls == ServerTls(
        certificate=Path("o.pem"),
        key=Path("o.key"),
        client_ca=Path("ca.pem"),
        client_auth="optional",
    )
    assert seen[0].connections_max == 7


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tls-key k", "--tls-cert and --tls-key belong together"),
        ("--operator-tls-cert c", "--operator-tls-cert and --operator-tls-key belong together"),
        ("--operator-tls-client-ca c", "give --operator-tls-cert and --operator-tls-key"),
        ("--tls-cert c --tls-key k --tls-client-auth optional", "needs --tls-client-ca"),
    ],
)
def test_tls_options_that_make_no_sense_alone_are_one_sentence(words: str, sentence: str) -> None:
    done = CliRunner().invoke(main, ["server", "run", "--memory", *words.split()])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [((1024, 4096), 2064), ((1024, 1500), 1500), ((4096, 4096), None), ((-1, -1), None)],
)
def test_the_limit_of_open_files_is_raised_as_far_as_needed(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: int | None
) -> None:
    became: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: became.append(given))
    raise_descriptor_limit(1000)
    assert became == ([] if wanted is None else [(wanted, limits[1])])


def test_how_long_the_audit_log_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerConfig] = []

    async def serve_nothing(config: ServerConfig) -> None:
        seen.append(config)

    monkeypatch.setattr(server, "_serve_until_stopped", serve_nothing)
    for given in ([], ["--keep-audit", "30d"], ["--listen", "0.0.0.0:8080"]):
        assert CliRunner().invoke(main, ["server", "run", "--memory", *given]).exit_code == 0
    day_ms = 86_400_000
    assert [one.audit_ms for one in seen] == [366 * day_ms, 30 * day_ms, 366 * day_ms]
    refused = CliRunner().invoke(main, ["server", "run", "--memory", "--keep-audit", "1s"])
    assert (refused.exit_code, "must be 1h to 3660d, not 1s" in refused.stderr) == (2, True)


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
