"""What original peers and ours say to each other, byte by byte, as it was when it was last read.

A difference is a change of the contract with peers that cannot be changed. One that is meant is
written down anew, to be read in the diff:

    NETSONDE_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/acceptance/test_original_transcripts.py
"""

import os
from pathlib import Path

import pytest

from support.original.transcripts import SCENES, normalised

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "original"
WRITE = "NETSONDE_WRITE_GOLDEN"


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_played_as_it_was_written_down(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    said = SCENES[name]()
    if os.environ.get(WRITE) == "1":
        path.write_text(said, "utf-8")
    known = path.read_text("utf-8")
    assert said.splitlines() == known.splitlines(), f"set {WRITE}=1 to write down what is meant"
    assert said == known


def test_nothing_else_is_written_down() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCENES)


def test_only_what_no_two_runs_share_is_left_out() -> None:
    body = '{"auth_token":"aB-3","inventory":{"os":"linux","labels":{}},"agent_id":7,"health":{}}'
    assert normalised(body) == (
        '{"auth_token":"<auth_token>","inventory":"<inventory>","agent_id":7,"health":"<health>"}'
    )


def test_the_scenes_show_every_call_and_what_sets_original_peers_apart() -> None:
    """A scene that lost its point would still be compared."""
    to_us, to_rust, to_go = (SCENES[name]() for name in SCENES)
    for verb in ("register", "heartbeat", "claim", "extend", "report"):
        for said in (to_us, to_rust, to_go):
            assert f">> POST /v1/agents/{verb}\n" in said, verb
    assert '\n\n[{"lease_id":' in to_us  # an extension as a bare array
    assert "<< 403\n" in to_us
    assert '"observations":[]' in to_us  # the HTTP stub
    assert '"outcomes":[' in to_rust
    assert "<< 500\n" in to_rust
    assert "<< 204\n" in to_go
    assert "content-type: text/plain; charset=utf-8" in to_go
    assert '"query":"A dns.example"' in to_go
    assert '"lease_until_ms":1790000' in to_go
    assert "<< 401\n" in to_go
    assert "agent_rejected" in to_go
