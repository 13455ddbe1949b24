"""`netsonde doctor`: what this host can measure, and the line that grants what it cannot."""

import importlib
import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import click
import msgspec

from netsonde.cli.exits import Exit
from netsonde.cli.options import json_options
from netsonde.cli.output import coloured, printable, write_text, write_value
from netsonde.cli.state import default_state_dir
from netsonde.clock import NS_PER_MS, ClockQuality, SystemClock
from netsonde.probe.privilege import (
    GRANT_HINT,
    RECEIVE_BUFFER_WANTED_BYTES,
    ReceiveBuffer,
    can_send_frames,
    capabilities,
    has_transmit_timestamps,
    icmp_access,
    receive_buffer,
)

STATUS_WIDTH = len("warn")
NATIVE_MODULES = ("deadlines", "icmp", "ledger")
OPEN_FILES_MIN = 1024  # a one-shot of 64 targets and an agent's lanes stay below it
RECEIVE_BUFFER_MIN_BYTES = 1 << 20  # 5 times what most hosts grant
REPLY_BYTES = 832  # what the kernel charges for a small reply; twice and more with some drivers
FAST_REPLIES_PER_MS = 100
FREE_BYTES_MIN = 256 << 20  # a spool that fills its disk stops claiming

Status = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at; `fix` is the line to paste."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


@click.command()
@click.option("--state-dir", type=click.Path(path_type=Path), help="State directory to look at.")
@json_options
def doctor(state_dir: Path | None, as_json: bool) -> int:
    """Say what this host can measure, and how to grant what it lacks.

    Exit code 1 when something that netsonde needs is missing.
    """
    findings = list(examine(state_dir or default_state_dir()))
    if as_json:
        for finding in findings:
            write_value(finding)
    else:
        write_text("\n".join(report_lines(findings)))
    failed = any(finding.status == "fail" for finding in findings)
    return Exit.TARGET_FAILED if failed else Exit.OK


def report_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line per finding, and below it how to mend it, each way once."""
    shown: set[str] = set()
    for finding in findings:
        padding = " " * (STATUS_WIDTH - len(finding.status))
        yield f"{coloured(finding.status)}{padding}  {finding.name}: {printable(finding.detail)}"
        if finding.fix is None:
            continue
        fix = "(mended as above)" if finding.fix in shown else finding.fix
        shown.add(finding.fix)
        yield from (f"{' ' * STATUS_WIDTH}    {line}" for line in fix.splitlines())


def examine(state_dir: Path) -> Iterator[Finding]:
    """Look at everything netsonde depends on, without sending a packet."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield native_modules()
    able = capabilities()
    yield icmp(4)
    if able["ipv6"]:
        yield icmp(6)
    else:
        yield Finding("ICMPv6", "warn", "this host has no IPv6")
    yield traceroute(able)
    yield packet_sockets(can_send_frames())
    yield kernel_timestamps(able)
    yield transmit_timestamps(has_transmit_timestamps())
    yield ping_group_range(_read("/proc/sys/net/ipv4/ping_group_range"))
    yield reply_buffer(receive_buffer())
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield clock(SystemClock().quality())
    yield resolver(_read("/etc/resolv.conf"))
    yield state_directory(state_dir)


def native_modules() -> Finding:
    """Try to load the compiled modules."""
    broken = []
    for name in NATIVE_MODULES:
        try:
            importlib.import_module(f"netsonde._native.{name}")
        except ImportError as error:
            broken.append(f"{name} ({error})")
    if broken:
        fix = f"{sys.executable} -m pip install --force-reinstall netsonde"
        return Finding("native modules", "fail", f"cannot load {', '.join(broken)}", fix)
    return Finding("native modules", "ok", ", ".join(NATIVE_MODULES))


def icmp(family: int) -> Finding:
    """Say how this process may send echo requests of family 4 or 6."""
    name = f"ICMPv{family}"
    match icmp_access(family):
        case "raw":
            return Finding(name, "ok", "raw sockets")
        case "datagram":
            detail = "ICMP datagram sockets, no CAP_NET_RAW: pings and traces by ICMP"
            return Finding(name, "warn", detail, GRANT_HINT)
        case _:
            detail = "no CAP_NET_RAW and no ICMP datagram sockets: cannot ping or trace"
            return Finding(name, "fail", detail, GRANT_HINT)


def traceroute(able: dict[str, bool]) -> Finding:
    """Say whether trace works here."""
    if able["raw_trace"]:
        return Finding("trace", "ok", "raw sockets")
    if able["datagram_icmp"]:
        return Finding("trace", "warn", "no CAP_NET_RAW: by ICMP only", GRANT_HINT)
    return Finding("trace", "fail", "no CAP_NET_RAW: cannot trace", GRANT_HINT)


def kernel_timestamps(able: dict[str, bool]) -> Finding:
    """Say whose clock times the replies."""
    if able["kernel_timestamps"]:
        return Finding("kernel time stamps", "ok", "replies are stamped by the kernel")
    detail = "replies are stamped by this process: its own delays enter the RTTs"
    return Finding("kernel time stamps", "warn", detail)


def packet_sockets(can_open: bool) -> Finding:
    """Say whether frames can be built and sent here."""
    name = "AF_PACKET"
    if can_open:
        return Finding(name, "ok", "packet sockets")
    return Finding(name, "warn", "no CAP_NET_RAW: no packet sockets", GRANT_HINT)


def transmit_timestamps(has_them: bool) -> Finding:
    """Say whether the kernel knows when a packet left."""
    name = "transmit time stamps"
    if has_them:
        return Finding(name, "ok", "SO_TIMESTAMPING, where the interface's driver stamps")
    return Finding(name, "warn", "no SO_TIMESTAMPING: sends are timed by this process")


def ping_group_range(text: str | None) -> Finding:
    """Say which groups may open ICMP datagram sockets (icmp(7))."""
    name = "ping_group_range"
    numbers = (text or "").split()
    if len(numbers) != 2:
        return Finding(name, "warn", "not readable here")
    low, high = (int(number) for number in numbers)
    if low > high:
        detail = "no group may ping without CAP_NET_RAW"
        return Finding(name, "ok", detail)
    return Finding(name, "ok", f"groups {low} to {high} may ping without CAP_NET_RAW")


def reply_buffer(buffer: ReceiveBuffer) -> Finding:
    """Say how many replies may wait to be read; the kernel holds twice the bytes it grants."""
    name = "receive buffer"
    size = buffer.granted_bytes
    replies = 2 * size // REPLY_BYTES
    detail = (
        f"{size} bytes, at most {replies} replies, {replies // FAST_REPLIES_PER_MS} ms at 100 000/s"
    )
    if size >= RECEIVE_BUFFER_MIN_BYTES:
        return Finding(name, "ok", detail)
    whose = "an agent with CAP_NET_RAW alone" if buffer.is_unlimited else "this process"
    lost = "what comes in larger bursts is lost (counted as rx_drops)"
    fix = f"sudo sysctl -w net.core.rmem_max={RECEIVE_BUFFER_WANTED_BYTES}"
    return Finding(name, "warn", f"{whose} gets {detail}: {lost}", fix)


def open_files(limit: int) -> Finding:
    """Say how many files this process may open."""
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES_MIN:
        shown = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        return Finding("open files", "ok", shown)
    detail = f"{limit}: too few for many connections at once"
    return Finding("open files", "warn", detail, f"ulimit -n {OPEN_FILES_MIN}")


def clock(quality: ClockQuality) -> Finding:
    """Say whether the wall clock is synchronised, as the kernel knows it."""
    name = "clock"
    if quality.synchronised is None:
        return Finding(name, "warn", "the kernel does not tell whether it is synchronised")
    if not quality.synchronised:
        detail = "not synchronised: RTTs are right, started_at may be wrong"
        return Finding(name, "warn", detail, "sudo timedatectl set-ntp true")
    errors = {"estimated": quality.estimated_error_ns, "at most": quality.maximum_error_ns}
    told = (f"{how} {ns / NS_PER_MS:.3f} ms" for how, ns in errors.items() if ns is not None)
    return Finding(name, "ok", f"synchronised, error {', '.join(told)}")


def resolver(text: str | None) -> Finding:
    """Say which DNS servers names are asked of (resolv.conf(5))."""
    servers = [
        words[1]
        for words in (line.split() for line in (text or "").splitlines())
        if len(words) >= 2 and words[0] == "nameserver"
    ]
    if servers:
        return Finding("resolver", "ok", ", ".join(servers))
    detail = "/etc/resolv.conf names no server: only addresses can be measured"
    fix = "echo 'nameserver 192.0.2.53' | sudo tee -a /etc/resolv.conf   # your resolver's address"
    return Finding("resolver", "warn", detail, fix)


def state_directory(path: Path) -> Finding:
    """Say whether path can hold the spool and the store."""
    name = "state directory"
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    fix = f"sudo install -d -m 700 -o {os.geteuid()} -g {os.getegid()} {path}"
    if not existing.is_dir():
        return Finding(name, "fail", f"{existing} is not a directory", "use --state-dir DIR")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{path} cannot be written by this user", fix)
    facts = os.statvfs(existing)
    free = facts.f_bavail * facts.f_frsize
    if free < FREE_BYTES_MIN:
        return Finding(name, "warn", f"{path} has {free >> 20} MiB free")
    where = str(path) if existing == path else f"{path} (will be made)"
    return Finding(name, "ok", f"{where}, {free >> 20} MiB free")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
