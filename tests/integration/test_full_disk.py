"""A disk that gets full while results come in."""

from pathlib import Path

import pytest

from support.small_disk import GROUP, in_namespace


def test_claims_stop_first_results_last_and_both_come_back(tmp_path: Path) -> None:
    story = in_namespace(tmp_path)
    if story is None:
        pytest.skip("this host does not let an ordinary user mount a tmpfs")

    first = list(dict.fromkeys(story.events))
    assert first == ["claim", "report", "claim refused", "report refused"]
    stopped, full = story.events.index("claim refused"), story.events.index("report refused")
    assert story.events[stopped:full].count("report") >= 2, "results had room left"
    assert "claim" not in story.events[stopped:full]
    assert story.events[-1] == "report", "room is enough, nothing was restarted"
    assert story.health[:2] == ["ok", "degraded"]
    assert story.statuses == {"duplicate": GROUP}
    assert story.kept == story.acknowledged, "each one once"
    assert len(story.kept) > 200
