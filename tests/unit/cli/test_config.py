"""Signed configurations on the command line: keys, envelopes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from netsonde.cli import operate
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.dsse import Envelope, SigningKey, TrustedKeys
from netsonde.remote_config import PAYLOAD_TYPE, inspect
from netsonde.wire import decode_answer
from support.configs import KEY, OTHER_KEY, document, envelope
from support.operator import FakeOperator

VALUES = "target_starts_per_s = 5\n[kinds.ping]\nconcurrency = 10\n"


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


def run(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["config", *map(str, args)], input=stdin)


def key_file(folder: Path, key: SigningKey = KEY) -> Path:
    path = folder / f"{key.public.keyid}.pem"
    path.write_bytes(key.pem())
    path.chmod(0o600)
    return path


def values_file(folder: Path, text: str = VALUES) -> Path:
    path = folder / "values.toml"
    path.write_text(text)
    return path


def envelope_file(folder: Path, sealed: Envelope) -> Path:
    path = folder / "envelope.json"
    path.write_text(json.dumps(document(sealed)))
    return path


def read(done: Result) -> Envelope:
    assert done.exit_code == Exit.OK, done.stderr
    return decode_answer(Envelope, done.stdout.encode())


# ── keygen ──


def test_a_key_is_its_owners_only_and_prints_its_public_half(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    done = run("keygen", path, "--json")
    assert done.exit_code == Exit.OK, done.stderr
    told = json.loads(done.stdout)
    key = SigningKey.from_pem(path.read_bytes())
    assert told == {"keyid": key.public.keyid, "public_key": key.public.text, "file": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in done.stdout


def test_no_two_keys_are_alike(tmp_path: Path) -> None:
    told = [json.loads(run("keygen", tmp_path / name, "--json").stdout) for name in "ab"]
    assert told[0]["keyid"] != told[1]["keyid"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    before = path.read_bytes()
    done = run("keygen", path)
    assert done.exit_code == Exit.USAGE
    assert "is not overwritten" in done.stderr
    assert path.read_bytes() == before


def test_nor_is_what_a_link_points_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    assert run("keygen", link).exit_code != Exit.OK
    assert not target.exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = run("keygen", tmp_path / "none" / "key")
    assert done.exit_code == Exit.CANNOT
    assert "No such file" in done.stderr


# ── sign ──


def test_values_become_an_envelope(tmp_path: Path) -> None:
    done = run(
        "sign", values_file(tmp_path), "--key", key_file(tmp_path),
        "--revision", 18, "--expires", "1d",
    )  # fmt: skip
    sealed = read(done)
    assert len(done.stdout.splitlines()) == 1
    payload = inspect(sealed)
    assert (payload.revision, payload.scope.all) == (18, True)
    assert (payload.expires_at - payload.issued_at).total_seconds() == 86_400
    assert payload.config.target_starts_per_s == 5
    assert TrustedKeys([KEY.public]).verify(sealed, PAYLOAD_TYPE).keyids == (KEY.public.keyid,)


def test_json_from_standard_input_is_as_good(tmp_path: Path) -> None:
    args = ("sign", "-", "--key", key_file(tmp_path), "--revision", 1)
    sealed = read(run(*args, stdin='{"log_level":"debug"}'))
    assert inspect(sealed).config.log_level == "debug"


@pytest.mark.parametrize(
    ("args", "scope"),
    [
        (("--label", "site=ams", "--label", "tier=1"), {"site": "ams", "tier": "1"}),
        (("--agent", "7", "--agent", "ams-1"), (7, "ams-1")),
        (("--agent", "9" * 30), ("9" * 30,)),
    ],
)
def test_it_can_be_for_some(tmp_path: Path, args: tuple[str, ...], scope: Any) -> None:
    base = ("sign", values_file(tmp_path), "--key", key_file(tmp_path), "--revision", 1)
    found = inspect(read(run(*base, *args))).scope
    assert scope in (found.labels, found.agents)


def test_another_signature_is_added_and_nothing_else_changes(tmp_path: Path) -> None:
    path = envelope_file(tmp_path, envelope(5))
    sealed = read(run("sign", path, "--key", key_file(tmp_path, OTHER_KEY)))
    assert sealed.payload == envelope(5).payload
    assert [one.keyid for one in sealed.signatures] == [KEY.public.keyid, OTHER_KEY.public.keyid]
    again = read(run("sign", envelope_file(tmp_path, sealed), "--key", key_file(tmp_path)))
    assert len(again.signatures) == 2


@pytest.mark.parametrize(
    ("text", "args", "sentence"),
    [
        (VALUES, (), "--revision is needed"),
        (VALUES, ("--revision", "0"), "0"),
        (VALUES, ("--revision", 1, "--label", "a=b", "--agent", "7"), "without --label"),
        ("control_plane = 'http://evil'", ("--revision", 1), "unknown field `control_plane`"),
        ("[kinds.ping]\nconcurrency = -1", ("--revision", 1), "kinds[...].concurrency"),
        ("deny = ['10.0.0.1/8']", ("--revision", 1), "host bits"),
        ("= 1", ("--revision", 1), "neither JSON nor TOML"),
        ("{", ("--revision", 1), "neither JSON nor TOML"),
        ("x = " + "[" * 5000, ("--revision", 1), "neither JSON nor TOML"),
        ("target_starts_per_s = nan", ("--revision", 1), "target_starts_per_s"),
        ("target_starts_per_s = inf", ("--revision", 1), "target_starts_per_s"),
        ("log_level = 2026-01-01", ("--revision", 1), "log_level"),
        ('{"target_starts_per_s":' + "9" * 40 + "}", ("--revision", 1), "target_starts_per_s"),
        (VALUES, ("--revision", 2**53), "9007199254740991"),
        (VALUES, ("--revision", 1, "--expires", "999999d"), "at most 3650d"),
        (VALUES, ("--revision", 1, "--expires", "0s"), "more than 0"),
        ('{"payload":"x"}', (), "is not an envelope"),
        (json.dumps(document(envelope(5))), ("--revision", 6), "signed as it is"),
    ],
)
def test_what_cannot_be_is_not_signed(
    tmp_path: Path, text: str, args: tuple[object, ...], sentence: str
) -> None:
    done = run("sign", values_file(tmp_path, text), "--key", key_file(tmp_path), *args)
    assert done.exit_code == Exit.USAGE
    assert sentence in done.stderr
    assert done.stdout == ""


def test_what_is_no_key_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(0o600)
    done = run("sign", values_file(tmp_path), "--key", path, "--revision", 1)
    assert done.exit_code == Exit.USAGE
    assert "not a private key" in done.stderr
    assert "secret" not in done.stderr
    done = run("sign", values_file(tmp_path), "--key", tmp_path / "none", "--revision", 1)
    assert done.exit_code == Exit.CANNOT


def test_a_key_that_others_can_read_is_told(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    path.chmod(0o644)
    done = run("sign", values_file(tmp_path), "--key", path, "--revision", 1)
    assert done.exit_code == Exit.OK
    assert "chmod 600" in done.stderr


# ── verify ──


def test_a_good_envelope_says_what_it_says(tmp_path: Path) -> None:
    path = envelope_file(tmp_path, envelope(5, scope={"labels": {"site": "ams"}}))
    done = run("verify", path, "--key", KEY.public.text, "--json")
    assert done.exit_code == Exit.OK, done.stderr
    told = json.loads(done.stdout)
    assert (told["revision"], told["scope"]) == (5, {"labels": {"site": "ams"}})
    assert (told["keyids"], told["expired"]) == ([KEY.public.keyid], False)
    text = run("verify", path, "--key", KEY.public.text).stdout
    assert "agents with site=ams" in text


def test_what_a_ceiling_would_lower_is_shown(tmp_path: Path) -> None:
    ceiling = tmp_path / "ceiling.toml"
    ceiling.write_text("[kinds.ping]\nconcurrency = 1\n")
    args = ("verify", envelope_file(tmp_path, envelope(5)), "--key", KEY.public.text)
    done = run(*args, "--ceiling", ceiling)
    assert "above the ceiling: kinds.ping.concurrency = 2, 1" in done.stdout
    ceiling.write_text("x = 1")
    done = run(*args, "--ceiling", ceiling)
    assert done.exit_code == Exit.USAGE
    assert "ceiling.toml: Object contains unknown field" in done.stderr


def test_a_stranger_and_a_forgery_are_refused(tmp_path: Path) -> None:
    path = envelope_file(tmp_path, envelope(5))
    done = run("verify", path, "--key", OTHER_KEY.public.text)
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert "it is signed by" in done.stderr
    path.write_text(path.read_text().replace('"sig": "', '"sig": "AAAA'))
    done = run("verify", path, "--key", KEY.public.text)
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert "is not of these bytes" in done.stderr


def test_an_expired_one_is_not_ok(tmp_path: Path) -> None:
    path = envelope_file(tmp_path, envelope(5, None, expires_s=1))
    done = run("verify", path, "--key", KEY.public.text)
    assert done.exit_code == Exit.TARGET_FAILED
    assert "expired 1970-01-01" in done.stdout


# ── publish, show ──


def test_an_envelope_is_published_as_it_is(tmp_path: Path, operator: FakeOperator) -> None:
    path = envelope_file(tmp_path, envelope(18))
    done = run("publish", path)
    assert done.exit_code == Exit.OK, done.stderr
    assert operator.published == [document(envelope(18))]
    assert done.stdout.startswith("configuration 18 published for all agents\n")
    assert json.loads(run("publish", path, "--json").stdout)["revision"] == 18


def test_what_is_no_envelope_is_not_published(tmp_path: Path, operator: FakeOperator) -> None:
    assert run("publish", values_file(tmp_path)).exit_code == Exit.USAGE
    bad = envelope_file(tmp_path, envelope(18, {"exec": "rm"}))
    assert run("publish", bad).exit_code == Exit.USAGE
    assert operator.published == []


def listed(revision: int, **more: Any) -> dict[str, Any]:
    return {
        "revision": revision,
        "scope": {"agents": [7, "ams-1"]},
        "expires_at": "2100-01-01T00:00:00+00:00",
        "published_at": "2026-01-01T00:00:00Z",
        "keyids": ["k1", "k2"],
    } | more


def test_the_list_is_a_table(operator: FakeOperator) -> None:
    operator.config_list = [listed(19), listed(18)]
    heading, first, _ = run("show").stdout.splitlines()
    assert heading.split() == ["REVISION", "FOR", "SIGNED", "BY", "EXPIRES", "PUBLISHED"]
    assert first.startswith("19        agents 7, ams-1  k1 k2")
    lines = [json.loads(line) for line in run("show", "--json").stdout.splitlines()]
    assert lines == operator.config_list


def test_one_shows_what_every_agent_made_of_it(operator: FakeOperator) -> None:
    operator.config_list = [listed(18, config={"log_level": "debug"})]
    operator.status_answer = {
        "counts": {"ack": 1, "nack": 1},
        "agents": [
            {"agent_id": 7, "hostname": "a", "status": "ack", "applied": 18, "stale": True,
             "clamped": [{"path": "log_level"}]},
            {"agent_id": 8, "hostname": "b\x1b[2J", "status": "nack", "reason": "expired",
             "error": "it expired"},
        ],
    }  # fmt: skip
    out = run("show", "18").stdout
    assert '{"log_level":"debug"}' in out
    assert "lowered: log_level; expired, still in force" in out
    assert "expired: it expired" in out
    assert "\x1b" not in out
    assert "1 ack, 1 nack" in out
    one = json.loads(run("show", "18", "--json").stdout)
    assert one["status"] == operator.status_answer
