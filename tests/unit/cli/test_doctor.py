"""What the doctor makes of what it finds."""

import resource
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsonde import wire
from netsonde.cli import doctor
from netsonde.cli.doctor import Finding
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.clock import ClockQuality
from netsonde.probe.privilege import ReceiveBuffer


@pytest.mark.parametrize(
    ("access", "status", "word"),
    [
        ("raw", "ok", "raw sockets"),
        ("datagram", "warn", "by ICMP"),
        (None, "fail", "cannot ping"),
    ],
)
def test_icmp(monkeypatch: pytest.MonkeyPatch, access: str | None, status: str, word: str) -> None:
    monkeypatch.setattr(doctor, "icmp_access", lambda family: access if family == 6 else "raw")
    finding = doctor.icmp(6)
    assert (finding.name, finding.status) == ("ICMPv6", status)
    assert word in finding.detail
    assert ("CAP_NET_RAW" in (finding.fix or "")) == (status != "ok")


def test_trace_and_time_stamps() -> None:
    assert doctor.traceroute({"raw_trace": True}).status == "ok"
    assert doctor.traceroute({"raw_trace": False, "datagram_icmp": True}).status == "warn"
    refused = doctor.traceroute({"raw_trace": False, "datagram_icmp": False})
    assert refused.status == "fail"
    assert "AmbientCapabilities=CAP_NET_RAW" in (refused.fix or "")
    assert doctor.kernel_timestamps({"kernel_timestamps": True}).status == "ok"
    assert doctor.kernel_timestamps({"kernel_timestamps": False}).status == "warn"
    assert doctor.transmit_timestamps(True).status == "ok"
    assert doctor.transmit_timestamps(False).status == "warn"


def test_packet_sockets() -> None:
    assert doctor.packet_sockets(True).status == "ok"
    refused = doctor.packet_sockets(False)
    assert refused.status == "warn"
    assert "AmbientCapabilities=CAP_NET_RAW" in (refused.fix or "")


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("1\t0\n", "no group may"),
        ("0\t2147483647\n", "groups 0 to 2147483647 may"),
        (None, "not readable"),
        ("", "not readable"),
    ],
)
def test_ping_group_range(text: str | None, detail: str) -> None:
    assert detail in doctor.ping_group_range(text).detail


@pytest.mark.parametrize(
    ("buffer", "status", "words"),
    [
        (ReceiveBuffer(8 << 20, False), "ok", "at most 20164 replies, 201 ms at"),
        (
            ReceiveBuffer(212_992, False),
            "warn",
            "this process gets 212992 bytes, at most 512 replies",
        ),
        (ReceiveBuffer(212_992, True), "warn", "an agent with CAP_NET_RAW alone gets 212992 bytes"),
    ],
)
def test_reply_buffer(buffer: ReceiveBuffer, status: str, words: str) -> None:
    finding = doctor.reply_buffer(buffer)
    assert finding.status == status
    assert words in finding.detail
    assert ("sysctl -w net.core.rmem_max=8388608" in (finding.fix or "")) == (status == "warn")


@pytest.mark.parametrize(
    ("limit", "status"), [(64, "warn"), (1024, "ok"), (resource.RLIM_INFINITY, "ok")]
)
def test_open_files(limit: int, status: str) -> None:
    assert doctor.open_files(limit).status == status


@pytest.mark.parametrize(
    ("quality", "status", "words"),
    [
        (
            ClockQuality(True, 125_000, 12_500_000),
            "ok",
            "error estimated 0.125 ms, at most 12.500 ms",
        ),
        (ClockQuality(True, None, 12_500_000), "ok", "synchronised, error at most 12.500 ms"),
        (ClockQuality(False), "warn", "not synchronised"),
        (ClockQuality(None), "warn", "does not tell"),
    ],
)
def test_clock(quality: ClockQuality, status: str, words: str) -> None:
    finding = doctor.clock(quality)
    assert finding.status == status
    assert words in finding.detail


@pytest.mark.parametrize(
    ("text", "status", "word"),
    [
        ("# x\nnameserver 192.0.2.1\nnameserver ::1\nsearch a\n", "ok", "192.0.2.1, ::1"),
        ("search a\nnameserver\n", "warn", "names no server"),
        (None, "warn", "names no server"),
    ],
)
def test_resolver(text: str | None, status: str, word: str) -> None:
    finding = doctor.resolver(text)
    assert finding.status == status
    assert word in finding.detail


def test_state_directory(tmp_path: Path) -> None:
    assert doctor.state_directory(tmp_path).status == "ok"
    made = doctor.state_directory(tmp_path / "a" / "b")
    assert made.status == "ok"
    assert "will be made" in made.detail
    assert not (tmp_path / "a").exists()
    file = tmp_path / "file"
    file.touch()
    assert doctor.state_directory(file / "x").status == "fail"


def test_a_directory_that_cannot_be_written_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    finding = doctor.state_directory(tmp_path)
    assert finding.status == "fail"
    assert f"{tmp_path}" in (finding.fix or "")


def findings(*statuses: str) -> list[Finding]:
    return [Finding(f"n{at}", status, "d", "line 1\nline 2") for at, status in enumerate(statuses)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [(["ok", "warn"], Exit.OK), (["ok", "fail"], Exit.TARGET_FAILED), ([], Exit.OK)],
)
def test_only_a_failure_fails(
    monkeypatch: pytest.MonkeyPatch, statuses: list[str], code: Exit
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda path: findings(*statuses))
    assert CliRunner().invoke(main, ["doctor"]).exit_code == code
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == code
    lines = [wire.parse(line.encode()) for line in done.stdout.splitlines()]
    assert [line["status"] for line in lines] == statuses


def test_each_way_to_mend_is_shown_once() -> None:
    lines = list(doctor.report_lines(findings("fail", "fail")))
    assert sum("line 2" in line for line in lines) == 1
    assert sum("as above" in line for line in lines) == 1


def test_this_host_can_be_examined(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--json", "--state-dir", str(tmp_path)])
    assert done.exit_code in (Exit.OK, Exit.TARGET_FAILED)
    names = [wire.parse(line.encode())["name"] for line in done.stdout.splitlines()]
    assert {"native modules", "ICMPv4", "ICMPv6", "trace", "clock", "state directory"} <= set(names)
