"""Settings: where they come from, who wins, and what a wrong one is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from netsonde.agent.config import AgentConfig
from netsonde.agent.settings import CHECKS, DEFAULT_CAPACITIES
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.tls import ClientTls

URL = "http://192.0.2.1:8080"


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_the_address_is_all_that_is_needed() -> None:
    config = AgentConfig.load(None, {"NETSONDE_CONTROL_PLANE": URL})

    assert config.control_plane == URL
    assert config.capacities == DEFAULT_CAPACITIES
    assert config.targets == ("public",)
    assert config.hostname
    assert (config.agent_id, config.auth_token, config.enrolment_token) == (None, None, None)


def test_without_an_address_there_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="control_plane is not set"):
        AgentConfig.load(None, {"NETSONDE_CONTROL_PLANE": " "})


def test_a_file_has_every_setting(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
        control_plane = "{URL}/base"
        state_dir = "/srv/netsonde"
        hostname = "ams-1"
        targets = ["public", "10.0.0.0/8"]
        deny = ["10.9.0.0/16"]
        enrolment_token = "net_abc"
        agent_id = 18446744073709551615
        auth_token = "secret"
        claim_wait_s = 5
        report_interval_ms = 100
        drain_timeout_s = 1.5
        target_starts_per_s = 2
        packets_per_s = 1000
        ping_packets_per_s = 500.5
        prefix_packets_per_s = 50
        target_packets_per_s = 0
        ping_backends = ["packet", "raw"]
        spool_rows = 10
        spool_bytes = 1048576
        log_level = "debug"
        log_json = true

        [labels]
        site = "ams"

        [capacities]
        ping = 7
        trace = 0
        """,
    )

    config = AgentConfig.load(path, {})

    assert config == AgentConfig(
        control_plane=URL + "/base",
        state_dir=Path("/srv/netsonde"),
        hostname="ams-1",
        labels={"site": "ams"},
        capacities={**DEFAULT_CAPACITIES, TaskKind.PING: 7, TaskKind.TRACE: 0},
        targets=("public", "10.0.0.0/8"),
        deny=("10.9.0.0/16",),
        enrolment_token="net_abc",
        agent_id=2**64 - 1,
        auth_token="secret",
        claim_wait_s=5.0,
        report_interval_ms=100,
        drain_timeout_s=1.5,
        target_starts_per_s=2.0,
        packets_per_s=1000.0,
        ping_packets_per_s=500.5,
        prefix_packets_per_s=50.0,
        target_packets_per_s=0.0,
        ping_backends=("packet", "raw"),
        spool_rows=10,
        spool_bytes=1 << 20,
        log_level="debug",
        log_json=True,
    )


def test_the_environment_writes_the_same_as_text() -> None:
    environ = {
        "NETSONDE_CONTROL_PLANE": URL,
        "NETSONDE_LABELS": "site=ams, rack=3",
        "NETSONDE_CAPACITIES": "ping=7,dns=1",
        "NETSONDE_TARGETS": "public, 10.0.0.0/8",
        "NETSONDE_CLAIM_WAIT_S": "2.5",
        "NETSONDE_SPOOL_ROWS": "10",
        "NETSONDE_LOG_JSON": "TRUE",
        "NETSONDE_PING_BACKENDS": "raw, datagram",
        "NETSONDE_PACKETS_PER_S": "2e3",
        "NETSONDE_AGENT_ID": "4",
        "NETSONDE_AUTH_TOKEN": "t",
    }
    config = AgentConfig.load(None, environ)

    assert config.labels == {"site": "ams", "rack": "3"}
    assert config.capacities == {**DEFAULT_CAPACITIES, TaskKind.PING: 7, TaskKind.DNS: 1}
    assert config.targets == ("public", "10.0.0.0/8")
    assert (config.claim_wait_s, config.spool_rows, config.log_json) == (2.5, 10, True)
    assert (config.agent_id, config.auth_token) == (4, "t")
    assert (config.ping_backends, config.packets_per_s) == (("raw", "datagram"), 2000.0)


def test_the_original_agents_names_are_understood() -> None:
    environ = {
        "AGENT_CONTROL_PLANE": URL,
        "AGENT_ID": "18446744073709551615",
        "AGENT_AUTH_TOKEN": "opaque",
        "AGENT_POOL_DNS_SIZE": "4",
        "AGENT_POOL_TRACE_SIZE": "1",
        "AGENT_POOL_HTTP_SIZE": "",
    }
    config = AgentConfig.load(None, environ)

    assert (config.control_plane, config.agent_id) == (URL, 2**64 - 1)
    assert config.capacities == {**DEFAULT_CAPACITIES, TaskKind.DNS: 4, TaskKind.TRACE: 1}


def test_an_empty_agent_id_is_an_unset_one() -> None:
    config = AgentConfig.load(
        None, {"AGENT_CONTROL_PLANE": URL, "AGENT_ID": "", "AGENT_AUTH_TOKEN": ""}
    )

    assert (config.agent_id, config.auth_token) == (None, None)


@pytest.mark.parametrize("name", ["AGENT_ID", "AGENT_AUTH_TOKEN"])
def test_id_and_token_come_together_or_not_at_all(name: str) -> None:
    with pytest.raises(ConfigError, match="agent_id and auth_token belong together"):
        AgentConfig.load(None, {"AGENT_CONTROL_PLANE": URL, name: "5"})


def test_certificate_files_are_settings_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        'control_plane = "https://control.test"\nca_file = "ca.pem"\nclient_cert_file = "c.pem"\n'
    )
    environ = {"NETSONDE_CLIENT_KEY_FILE": "c.key"}
    config = AgentConfig.load(file, environ, ca_file=Path("other.pem"))
    assert config.tls() == ClientTls(
        ca=Path("other.pem"), certificate=Path("c.pem"), key=Path("c.key")
    )


def test_certificate_files_come_in_pairs_and_with_https() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        AgentConfig(control_plane="https://control.test", client_key_file=Path("k"))
    with pytest.raises(ConfigError, match="not an https:// address"):
        AgentConfig(control_plane="http://control.test", ca_file=Path("ca"))


def test_later_sources_win_and_tables_add_up(tmp_path: Path) -> None:
    path = write(
        tmp_path, f'control_plane = "{URL}"\nhostname = "file"\n[capacities]\ndns = 1\nping = 1\n'
    )
    environ = {"AGENT_POOL_PING_SIZE": "2", "NETSONDE_CAPACITIES": "tcp=3"}

    config = AgentConfig.load(
        path, environ, defaults={"state_dir": Path("/d")}, hostname="given", labels=None
    )

    assert config.hostname == "given"
    assert config.state_dir == Path("/d")
    assert [config.capacities[kind] for kind in (TaskKind.DNS, TaskKind.PING, TaskKind.TCP)] == [
        1, 2, 3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('hostnme = "x"', r"agent\.toml, line 2: there is no setting hostnme; did you mean hostn"),
        ("xyzzy = 1", "there is no setting xyzzy; there are control_plane"),
        ('spool_rows = "many"', r"line 2: spool_rows must be a whole number from 1 to 100000000"),
        ("spool_rows = true", "spool_rows must be a whole number"),
        ("drain_timeout_s = -1", "drain_timeout_s must be a number from 0 to 3600, not -1"),
        ("drain_timeout_s = nan", "drain_timeout_s must be a number"),
        (
            "packets_per_s = -1",
            "packets_per_s must be 0, for no limit, or a number from 0.000001 to 1000000000, not",
        ),
        (
            "packets_per_s = 4e-7",
            "packets_per_s must be 0, for no limit, or a number from 0.000001 to 1000000000",
        ),
        ('ping_packets_per_s = "x"', "ping_packets_per_s must be 0, for no limit, or"),
        ("prefix_packets_per_s = inf", "prefix_packets_per_s must be 0, for no limit, or"),
        ("target_packets_per_s = true", "target_packets_per_s must be 0, for no limit, or"),
        (
            'ping_backends = ["smoke"]',
            "line 2: ping_backends must list some of header, raw, packet, datagram, each once",
        ),
        ("ping_backends = []", "ping_backends must list some of"),
        ('ping_backends = ["raw", "raw"]', "ping_backends must list some of"),
        ("ping_backends = 4", "ping_backends must list some of"),
        ("claim_wait_s = 56", "claim_wait_s must be a number from 0 to 55"),
        ('targets = ["privat"]', 'line 2: targets: "privat" is not "public", "private" or a'),
        ('deny = "10.0.0.1/8"', r'line 2: deny: "10.0.0.1/8" has host bits set'),
        ("[capacities]\nicmp = 3", r"line 2: capacities has no kind 'icmp': there are dns, http"),
        ("[capacities]\nping = -3", "capacities of ping must be a whole number from 0 to 10000"),
        ("capacities = 5", "capacities must be a table"),
        ("[labels]\nsite = 5", "labels must have printable texts"),
        ('log_level = "loud"', "log_level must be one of debug, info, warning, error, not 'loud'"),
        ("log_json = 1", "log_json must be true or false"),
        ('hostname = ""', "hostname must be 1 to 255 printable characters"),
        ("agent_id = 0", "agent_id must be a whole number from 1 to 18446744073709551615"),
        ('auth_token = "a b"', "auth_token must be 1 to 4096 ASCII characters without spaces"),
        ("state_dir = 4", "state_dir must be a path"),
        ("= 3", "is not TOML: .*line 2"),
    ],
)
def test_a_wrong_line_is_told_where_it_is_and_what_is_allowed(
    tmp_path: Path, line: str, says: str
) -> None:
    path = write(tmp_path, f'control_plane = "{URL}"\n{line}\n')

    with pytest.raises(ConfigError, match=says) as caught:
        AgentConfig.load(path, {})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["", "ftp://x", "http://", "x:8080", "http://u:p@x/", "http://x/?q", "http://x:0", "http://["],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^control_plane must be an .*https://control"):
        AgentConfig(control_plane=address)


def test_a_variable_is_named_when_it_is_wrong() -> None:
    with pytest.raises(ConfigError, match="AGENT_POOL_DNS_SIZE: capacities of dns must be"):
        AgentConfig.load(None, {"NETSONDE_CONTROL_PLANE": URL, "AGENT_POOL_DNS_SIZE": "lots"})
    with pytest.raises(ConfigError, match="NETSONDE_LABELS: labels must be a table"):
        AgentConfig.load(None, {"NETSONDE_CONTROL_PLANE": URL, "NETSONDE_LABELS": "ams"})


def test_an_agent_needs_a_kind_to_measure() -> None:
    with pytest.raises(ConfigError, match="capacities must leave the agent at least one kind"):
        AgentConfig(control_plane=URL, capacities=dict.fromkeys(TaskKind, 0))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "agent.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"agent\.toml (cannot be read|is not UTF-8)"):
        AgentConfig.load(path, {})


def test_secrets_do_not_show() -> None:
    config = AgentConfig(
        control_plane=URL, enrolment_token="net_hidden", agent_id=4, auth_token="hidden_too"
    )

    assert "hidden" not in repr(config)
    assert "enrolment_token=***" in repr(config)


def test_it_is_frozen() -> None:
    config: Any = AgentConfig(control_plane=URL)

    with pytest.raises(AttributeError):
        config.hostname = "other"
    with pytest.raises(TypeError):
        config.capacities[TaskKind.DNS] = 1


DOCS = Path(__file__).resolve().parents[3] / "docs" / "operations.md"
PACKAGE = Path(__file__).resolve().parents[3] / "engine" / "netsonde"


def rows(section: str) -> dict[str, str]:
    """The first two columns of the first table after a heading."""
    text = DOCS.read_text().partition(f"\n### {section}\n")[2].partition("\n#")[0]
    cells = (line.split("|") for line in text.splitlines() if line.startswith("| `"))
    return {one[1].strip().strip("`"): one[2].strip().strip("`") for one in cells}


def test_the_manual_has_every_setting_with_its_default() -> None:
    table = rows("Settings")
    config = AgentConfig(control_plane=URL)

    assert list(table) == list(config.__struct_fields__)
    for name in ("spool_rows", "spool_bytes", "report_interval_ms", "log_level"):
        assert table[name] == str(getattr(config, name))
    rates = [name for name in config.__struct_fields__ if name.endswith("packets_per_s")]
    for name in ("drain_timeout_s", "target_starts_per_s", *rates):
        assert float(table[name]) == getattr(config, name)
    told = ", ".join(f"{kind} {slots}" for kind, slots in config.capacities.items())
    assert table["capacities"] == told
    assert table["ping_backends"] == json.dumps(config.ping_backends)
    assert table["state_dir"] == str(config.state_dir)


def test_the_manual_explains_every_line_an_agent_logs() -> None:
    told = set(
        re.findall(r"`([a-z_]+)`", " ".join(f"`{one}`" for one in rows("What the logs say")))
    )
    sources = [*(PACKAGE / "agent").glob("*.py"), *(PACKAGE / "control_plane").glob("*.py")]
    sources.append(PACKAGE / "spool/file.py")
    logged = {
        action
        for source in sources
        for action in re.findall(r'action(?:": | = )"([a-z_]+)"', source.read_text())
    } | {"spool_full", "spool_failed"}

    assert told == logged


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        (":9109", ("127.0.0.1", 9109)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:9109", ("::1", 9109)),
    ],
)
def test_metrics_are_on_loopback_unless_told_otherwise(
    given: str, endpoint: tuple[str, int]
) -> None:
    assert AgentConfig(control_plane=URL).metrics_endpoint is None
    config = AgentConfig.load(environ={"NETSONDE_METRICS_LISTEN": given}, control_plane=URL)
    assert config.metrics_endpoint == endpoint


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics_listen": "9109"},
        {"metrics_listen": ":70000"},
        {"metrics_listen": ":" + "9" * 200},
        {"metrics_listen": 9109},
        {"metrics_interval_s": 1},
        {"metrics_interval_s": False},
        {"metrics_interval_s": "30"},
    ],
)
def test_a_wrong_setting_of_metrics_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        AgentConfig(control_plane=URL, **changes)


def test_every_setting_can_be_set_and_is_in_the_manual() -> None:
    assert set(AgentConfig.__struct_fields__) == set(CHECKS)
    manual = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
    assert [name for name in CHECKS if f"\n| `{name}` |" not in manual] == []
