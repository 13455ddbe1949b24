"""The control plane's settings: from a file, the environment and options, each with its bounds."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netsonde.cli import server
from netsonde.cli.root import main
from netsonde.cli.server_settings import SECTIONS
from netsonde.model import TaskKind
from netsonde.server import ServerConfig
from netsonde.server.config import BOUNDS

ROOT = Path(__file__).resolve().parents[3]
# Made of others, or set by the program that embeds a control plane.
DERIVED = {"database", "enrolment_token", "terms_ms", "tls", "operator_tls", "shutdown_timeout_s"}


class Rig:
    """Runs `server run` as far as its settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[ServerConfig] = []
        monkeypatch.setattr(server, "_serve_until_stopped", self._serve)

    async def _serve(self, config: ServerConfig) -> None:
        self.seen.append(config)

    def run(self, *words: str, **environ: str) -> Result:
        return CliRunner(env=environ).invoke(main, ["server", "run", "--memory", *words])

    def config(self, *words: str, **environ: str) -> ServerConfig:
        done = self.run(*words, **environ)
        assert done.exit_code == 0, done.output
        return self.seen[-1]

    def refusal(self, *words: str, **environ: str) -> str:
        done = self.run(*words, **environ)
        assert done.exit_code == 2, done.output
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def written(path: Path, text: str) -> str:
    file = path / "server.toml"
    file.write_text(text)
    return str(file)


def test_every_setting_can_be_set() -> None:
    run = server.run_server
    options = {option.name for option in run.params}
    settable = {one.name for one in fields(ServerConfig)} - DERIVED
    assert settable <= options
    assert set(BOUNDS) <= options
    headed = [name for names in SECTIONS.values() for name in names]
    assert set(headed) <= options
    assert len(headed) == len(set(headed))


def test_every_setting_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    for option in server.run_server.params:
        if option.name not in {"help", "log_json"}:
            assert f"`{option.opts[0]}" in manual, option.opts[0]


def test_without_any_they_are_the_defaults(rig: Rig) -> None:
    assert rig.config() == ServerConfig()


KNOBS = {
    "grace": ("3s", "grace_ms", 3_000),
    "max-lease": ("20m", "max_lease_ms", 1_200_000),
    "attempts": ("5", "max_attempts", 5),
    "retry-base": ("2s", "requeue_base_ms", 2_000),
    "retry-cap": ("10m", "requeue_cap_ms", 600_000),
    "heartbeat-interval": ("30s", "heartbeat_interval_ms", 30_000),
    "claim-wait": ("0", "claim_wait_ms", 0),
    "legacy-hold": ("500ms", "legacy_hold_ms", 500),
    "quota-scale": ("10", "quota_scale", 10),
    "shutdown-timeout": ("1.5s", "shutdown_timeout_s", 1.5),
    "max-database": ("1GiB", "max_database_bytes", 1 << 30),
    "retain-results": ("0", "retain_results_ms", 0),
    "connections-max": ("7", "connections_max", 7),
    "operator-listen": (":9", "operator_listen", ":9"),
}


@pytest.mark.parametrize("option", KNOBS)
def test_each_place_sets_it_and_the_later_one_wins(rig: Rig, option: str, tmp_path: Path) -> None:
    text, name, value = KNOBS[option]
    key = option.replace("-", "_")
    file = written(tmp_path, f'{key} = "{text}"')
    variable = f"NETSONDE_SERVER_{key.upper()}"

    assert getattr(rig.config(f"--{option}={text}"), name) == value
    assert getattr(rig.config(**{variable: text}), name) == value
    assert getattr(rig.config("--config", file), name) == value
    assert getattr(rig.config(NETSONDE_SERVER_CONFIG=file), name) == value
    assert getattr(rig.config("--config", file, **{variable: ""}), name) == value


def test_options_go_before_the_environment_and_that_before_the_file(
    rig: Rig, tmp_path: Path
) -> None:
    file = written(tmp_path, 'grace = "3s"\nattempts = 4\nquota_scale = 2\n')
    environ = {"NETSONDE_SERVER_GRACE": "4s", "NETSONDE_SERVER_ATTEMPTS": "5"}
    config = rig.config("--config", file, "--grace", "5s", **environ)
    assert (config.grace_ms, config.max_attempts, config.quota_scale) == (5_000, 5, 2)


def test_terms_are_a_table_in_the_file_and_a_list_in_the_environment(
    rig: Rig, tmp_path: Path
) -> None:
    file = written(tmp_path, '[term]\nping = "2m"\ndns = 5\n')
    config = rig.config("--config", file)
    assert (config.terms_ms[TaskKind.PING], config.terms_ms[TaskKind.DNS]) == (120_000, 5_000)
    config = rig.config(NETSONDE_SERVER_TERM="ping=3m, trace=20m")
    assert (config.terms_ms[TaskKind.PING], config.terms_ms[TaskKind.TRACE]) == (180_000, 1_200_000)
    assert config.max_lease_ms == 1_200_000


def test_a_flag_is_true_or_false_in_the_file(rig: Rig, tmp_path: Path) -> None:
    state = tmp_path / "state"
    file = written(tmp_path, f'memory = true\nstate_dir = "{state}"\n')
    done = CliRunner().invoke(main, ["server", "run", "--config", file])
    assert done.exit_code == 0, done.output
    assert rig.seen[-1].database is None
    assert not state.exists()


def test_a_bare_number_in_the_file_is_seconds_as_it_is_on_the_command_line(
    rig: Rig, tmp_path: Path
) -> None:
    assert rig.config("--config", written(tmp_path, "grace = 3\nclaim_wait = 0.5")).grace_ms == 3000
    assert rig.seen[-1].claim_wait_ms == 500


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--grace 5ms", "'--grace': must be 10ms to 10m, not 5ms"),
        ("--attempts 101", "'--attempts': must be 1 to 100, not 101"),
        ("--attempts many", "'--attempts': 'many' is not a whole number"),
        ("--quota-scale 0", "'--quota-scale': must be 1 to 1000, not 0"),
        ("--heartbeat-interval 2h", "must be 100ms to 1h, not 2h"),
        ("--claim-wait 56s", "must be 0 to 55s, not 56s"),
        ("--legacy-hold 21s", "must be 0 to 20s, not 21s"),
        ("--retain-results 1s", "must be 0 (no bound) or 1m to 3660d, not 1s"),
        ("--max-database 1MiB", "must be 0 (no bound) or 16MiB to 16TiB, not 1MiB"),
        ("--shutdown-timeout 11m", "must be 0 to 10m, not 11m"),
        ("--max-lease 1m", "--max-lease must be 90s, the longest --term, or more, not 1m"),
        ("--max-lease 2m --term ping=3m", "--max-lease must be 3m, the longest"),
        ("--retry-base 10m", "requeue_cap_ms must be 600000 to"),
    ],
)
def test_what_is_out_of_bounds_is_one_sentence(rig: Rig, words: str, sentence: str) -> None:
    assert sentence in rig.refusal(*words.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('\ngrace = "5ms"', "server.toml, line 2: grace: must be 10ms to 10m, not 5ms"),
        ("grce = 1", "server.toml, line 1: there is no setting grce; did you mean grace?"),
        ("config = 'x'", "there is no setting config"),
        ("grace = true", "line 1: grace must be a text or a number, not True"),
        ("grace = [1]", "line 1: grace must be a text or a number, not [1]"),
        ("memory = 1", "line 1: memory must be true or false, not 1"),
        ("term = 1", "line 1: term must be a table, as in [term], not 1"),
        ("[term]\nping = true", "line 1: term.ping must be a text or a number"),
        ('[term]\nping = "soon"', "'soon' is not a duration"),
        ("grace = ", "server.toml is not TOML"),
        ("log_level = 'loud'", "line 1: log_level: 'loud' is not one of"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_with_its_line(
    rig: Rig, tmp_path: Path, text: str, sentence: str
) -> None:
    assert sentence in rig.refusal("--config", written(tmp_path, text))


def test_what_is_wrong_in_the_environment_is_said_with_its_variable(rig: Rig) -> None:
    said = rig.refusal(NETSONDE_SERVER_ATTEMPTS="0")
    assert "NETSONDE_SERVER_ATTEMPTS: must be 1 to 100, not 0" in said


def test_a_file_that_is_not_there_is_named(rig: Rig, tmp_path: Path) -> None:
    done = rig.run("--config", str(tmp_path / "none.toml"))
    assert (done.exit_code, "none.toml cannot be read: No such file" in done.stderr) == (3, True)


def test_help_says_the_default_and_the_unit_of_each_bound() -> None:
    text = " ".join(CliRunner().invoke(main, ["server", "run", "--help"]).stdout.split())
    for option in ("grace", "attempts", "retry-base", "heartbeat-interval", "quota-scale"):
        assert re.search(rf"--{option} .*?\[[^]]+ to [^]]+\] \[default: \w+\]", text), option
