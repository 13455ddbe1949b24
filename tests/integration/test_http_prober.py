"""HTTP checks against real servers of this host's loopback, plain and over TLS."""

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import SystemClock
from netsonde.model import HttpSpec, Measurement, Outcome
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.http import HttpProber
from netsonde.probe.http.response import KEPT_HEADERS
from netsonde.probe.http.stream import client_context
from netsonde.probe.targets import TargetResolver
from support.certificates import make_certificate
from support.http_server import (
    HttpServer,
    http_server,
    never,
    response,
    says,
)

PLAIN_PHASES = ["resolve_ms", "connect_ms", "request_ms", "first_byte_ms", "transfer_ms"]
TLS_PHASES = [*PLAIN_PHASES[:2], "tls_ms", *PLAIN_PHASES[2:]]


async def run(
    spec: HttpSpec,
    *,
    policy: TargetPolicy | None = None,
    names: dict[str, str] | None = None,
    contexts: Callable[[bool], ssl.SSLContext] = lambda verify: client_context(verify=verify),
) -> Measurement:
    async def look_up(name: str, family: int) -> list[tuple[Any, ...]]:
        return [(0, ((names or {})[name], 0))]

    resolver = TargetResolver(
        policy or TargetPolicy.person(), look_up=look_up if names is not None else None
    )
    clock = SystemClock()
    record = Recorder(clock)
    prober = HttpProber(clock, resolver, contexts=contexts)
    await measure(prober, spec, record)
    await prober.close()
    return record.measurement()


def hops_of(measurement: Measurement) -> list[dict[str, Any]]:
    return [each.value for each in measurement.observations if each.name == "http_response"]


def summary_of(measurement: Measurement) -> dict[str, Any]:
    last = measurement.observations[-1]
    assert last.name == "http_summary"
    assert sum(each.name == "http_summary" for each in measurement.observations) == 1
    return dict(last.value)


def reason_of(measurement: Measurement) -> tuple[str, str]:
    assert measurement.error is not None
    return measurement.error.reason, measurement.error.failure_source


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_an_answer_is_told_whole(address: str) -> None:
    routes = {"/a": response("200 OK", b"hello", server="tests", x_secret="no")}
    async with http_server(routes, address=address) as server:
        measurement = await run(HttpSpec(url=f"{server.url}/a?b=c"))

    assert measurement.outcome is Outcome.OK
    (hop,) = hops_of(measurement)
    assert (hop["hop"], hop["status"], hop["http_version"]) == (1, 200, "1.1")
    assert hop["headers"] == {"content-length": "5", "server": "tests"}
    assert hop["body"] == {
        "size": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
        "truncated": False,
    }
    assert hop["address"].endswith(f":{server.port}")
    assert "tls" not in hop
    summary = summary_of(measurement)
    assert summary["success"] is True
    assert (summary["status"], summary["redirects"], summary["size"]) == (200, 0, 5)
    assert summary["final_url"] == f"{server.url}/a?b=c"
    assert measurement.env["source"] == address
    assert server.requests[0].startswith("GET /a?b=c HTTP/1.1\r\n")


async def test_phases_are_separate_and_sum_up() -> None:
    slow = says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"cd", pause_s=0.05)
    async with http_server({"/": slow}) as server:
        measurement = await run(HttpSpec(url=server.url))

    (hop,) = hops_of(measurement)
    phases = hop["phases"]
    assert list(phases) == PLAIN_PHASES
    assert 40 <= phases["first_byte_ms"] < 1000  # timers may fire a little early
    assert 40 <= phases["transfer_ms"] < 1000
    assert phases["connect_ms"] < 40
    total_ms = summary_of(measurement)["total_ms"]
    assert sum(phases.values()) == pytest.approx(total_ms, abs=20)
    assert hop["attempts"][0]["syn_rtt_ms"] > 0


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "503 Later", "302 Nowhere"])
async def test_any_complete_answer_is_a_success(status: str) -> None:
    async with http_server({"/": response(status)}) as server:
        measurement = await run(HttpSpec(url=server.url))

    assert measurement.outcome is Outcome.OK
    assert summary_of(measurement)["status"] == int(status[:3])


async def test_redirects_are_hops_of_their_own() -> None:
    routes = {
        "/": response("301 Moved", location="/second"),
        "/second": response("302 Found", location="third?x"),
        "/third": response("200 OK", b"end"),
    }
    async with http_server(routes) as server:
        measurement = await run(HttpSpec(url=f"{server.url}/"))

    hops = hops_of(measurement)
    assert [hop["status"] for hop in hops] == [301, 302, 200]
    assert [hop["url"].removeprefix(server.url) for hop in hops] == ["/", "/second", "/third?x"]
    assert all(list(hop["phases"]) == PLAIN_PHASES for hop in hops)
    summary = summary_of(measurement)
    assert (summary["redirects"], summary["status"]) == (2, 200)
    for name in PLAIN_PHASES:
        total = sum(hop["phases"][name] for hop in hops)
        assert summary["phases"][name] == pytest.approx(total)


async def test_no_redirect_is_followed_when_none_is_allowed() -> None:
    async with http_server({"/": response("302 Found", location="/x")}) as server:
        measurement = await run(HttpSpec(url=server.url, redirects=0))

    assert measurement.outcome is Outcome.OK
    assert summary_of(measurement)["status"] == 302
    assert len(server.requests) == 1


async def test_a_redirect_loop_ends() -> None:
    async with http_server({"/": response("302 Found", location="/")}) as server:
        measurement = await run(HttpSpec(url=server.url, redirects=3))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert reason_of(measurement) == ("protocol_error", "target")
    assert "more than 3 redirects" in summary_of(measurement)["error"]
    assert len(server.requests) == 4


@pytest.mark.parametrize("location", ["http://[", "ftp://example.net/", "http://u:p@x/"])
async def test_a_redirect_to_nonsense_is_the_targets_fault(location: str) -> None:
    async with http_server({"/": response("302 Found", location=location)}) as server:
        measurement = await run(HttpSpec(url=server.url))

    assert reason_of(measurement) == ("protocol_error", "target")
    assert "redirect is unusable" in hops_of(measurement)[0]["error"]


async def test_every_redirect_is_vetted() -> None:
    policy = TargetPolicy(("127.0.0.1/32",))
    routes = {"/": response("302 Found", location="http://inside.example/")}
    async with http_server(routes) as server:
        measurement = await run(
            HttpSpec(url=f"http://outside.example:{server.port}/"),
            policy=policy,
            names={"outside.example": "127.0.0.1", "inside.example": "169.254.169.254"},
        )

    assert measurement.outcome is Outcome.REJECTED
    assert reason_of(measurement) == ("denied", "policy")
    assert [hop.get("status") for hop in hops_of(measurement)] == [302, None]
    summary = summary_of(measurement)
    assert summary["reason"] == "denied"
    assert "169.254.169.254 is a cloud metadata service" in summary["error"]


async def test_the_largest_result_fits_into_a_report() -> None:
    long = {name: "v" * 4000 for name in KEPT_HEADERS if name not in ("content-length", "location")}
    headers = {name.replace("-", "_"): value for name, value in long.items()}
    headers["location"] = "/" + "l" * 7000
    routes = {
        "/": response("302 Found", b"", **headers),
        headers["location"]: response("302 Found", b"", **headers),
    }
    async with http_server(routes) as server:
        measurement = await run(HttpSpec(url=server.url, redirects=20))

    assert len(hops_of(measurement)) == 21
    assert reason_of(measurement) == ("protocol_error", "target")
    encoded = json.dumps([each.value for each in measurement.observations])
    assert len(encoded) < 200_000


async def test_secrets_are_not_carried_to_another_origin() -> None:
    async with http_server({"/": response("200 OK")}) as other:
        routes = {"/": response("302 Found", location=f"{other.url}/")}
        async with http_server(routes) as server:
            spec = HttpSpec(url=server.url, headers={"Authorization": "Bearer s", "X-Y": "z"})
            measurement = await run(spec)

    assert measurement.outcome is Outcome.OK
    assert "Authorization: Bearer s" in server.requests[0]
    assert "Authorization" not in other.requests[0]
    assert "X-Y: z" in other.requests[0]
    assert "Bearer" not in str(measurement.observations)


async def test_a_body_beyond_the_limit_is_left() -> None:
    body = says(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", *[b"x" * 65_536] * 1600)
    async with http_server({"/": body}) as server:
        measurement = await run(HttpSpec(url=server.url, max_body=1000))

    assert measurement.outcome is Outcome.OK
    (hop,) = hops_of(measurement)
    assert (hop["body"]["size"], hop["body"]["truncated"]) == (1000, True)


async def test_a_compressed_body_is_not_unpacked() -> None:
    bomb = b"\x1f\x8b" + b"\0" * 100
    async with http_server({"/": response("200 OK", bomb, content_encoding="gzip")}) as server:
        measurement = await run(HttpSpec(url=server.url))

    (hop,) = hops_of(measurement)
    assert hop["body"]["size"] == 102
    assert hop["headers"]["content-encoding"] == "gzip"
    assert "Accept-Encoding: identity" in server.requests[0]


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (b"", "before any answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "after 3 body bytes of 9"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "a chunked body"),
        (b"220 mail.example ESMTP\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "headers"),
    ],
)
async def test_a_broken_answer_is_the_targets_fault(wire: bytes, words: str) -> None:
    async with http_server({"/": says(wire)}) as server:
        measurement = await run(HttpSpec(url=server.url))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert reason_of(measurement) == ("protocol_error", "target")
    assert words in hops_of(measurement)[0]["error"]
    assert summary_of(measurement)["success"] is False


async def test_a_reset_is_told() -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        linger_not = struct.pack("ii", 1, 0)  # closing then sends RST
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)

    async with http_server({"/": reset}) as server:
        measurement = await run(HttpSpec(url=server.url))

    assert reason_of(measurement) == ("reset", "target")


async def test_silence_is_a_timeout_that_names_the_phase() -> None:
    async with http_server({"/": never}) as server:
        measurement = await run(HttpSpec(url=server.url, timeout_ms=100))

    assert reason_of(measurement) == ("timeout", "target")
    (hop,) = hops_of(measurement)
    assert hop["incomplete_phase"] == "first_byte"
    assert "phase first_byte was not over" in summary_of(measurement)["error"]
    assert 99 <= measurement.duration_ns / 1e6 < 1000  # uvloop's clock has whole milliseconds


async def test_an_endless_drip_ends_at_the_timeout() -> None:
    drip = says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", *[b"x"] * 99, pause_s=0.01)
    async with http_server({"/": drip}) as server:
        measurement = await run(HttpSpec(url=server.url, timeout_ms=150))

    assert reason_of(measurement)[0] == "timeout"
    (hop,) = hops_of(measurement)
    assert hop["incomplete_phase"] == "transfer"
    assert 0 < hop["body"]["size"] < 99


async def test_a_closed_port_is_refused() -> None:
    async with http_server({}) as server:
        url = server.url

    measurement = await run(HttpSpec(url=url))

    assert reason_of(measurement) == ("refused", "target")
    assert hops_of(measurement)[0]["attempts"][0]["reason"] == "refused"


async def test_cancellation_leaves_a_hop_and_a_summary() -> None:
    clock = SystemClock()
    record = Recorder(clock)
    prober = HttpProber(clock, TargetResolver(TargetPolicy.person()))
    asked = asyncio.Event()

    async def say_nothing(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await never(writer)

    async with http_server({"/": say_nothing}) as server, asyncio.TaskGroup() as group:
        task = group.create_task(measure(prober, HttpSpec(url=server.url), record))
        await asked.wait()
        task.cancel()

    measurement = record.measurement()
    summary = summary_of(measurement)
    assert (summary["success"], summary["cancelled"]) == (False, True)
    assert hops_of(measurement)[0]["incomplete_phase"] == "first_byte"


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


class Tls:
    """A server's certificate for 127.0.0.1 and good.example, and a client that trusts it."""

    def __init__(self, folder: Path) -> None:
        self.certificate, key = make_certificate(folder, "good.example", "127.0.0.1")
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(self.certificate, key)
        self.server.set_alpn_protocols(["h2", "http/1.1"])

    def trusting(self, verify: bool) -> ssl.SSLContext:
        context = client_context(verify=verify)
        context.load_verify_locations(self.certificate)
        return context

    @property
    def sha256(self) -> str:
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return hashlib.sha256(der).hexdigest()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


async def test_tls_is_a_phase_with_its_facts(tls: Tls) -> None:
    async with http_server({"/": response("200 OK", b"x")}, tls=tls.server) as server:
        measurement = await run(HttpSpec(url=server.url), contexts=tls.trusting)

    assert measurement.outcome is Outcome.OK
    (hop,) = hops_of(measurement)
    assert list(hop["phases"]) == TLS_PHASES
    assert hop["phases"]["tls_ms"] > 0
    facts = hop["tls"]
    assert facts["version"] == "TLSv1.3"
    assert facts["cipher"].startswith("TLS_")
    assert facts["alpn"] == "http/1.1"
    assert facts["verified"] is True
    assert facts["certificate"]["sha256"] == tls.sha256
    assert facts["certificate"]["subject"] == "O=netsonde tests, CN=good.example"
    assert 29 < facts["expires_in_days"] <= 30
    assert summary_of(measurement)["tls"]["version"] == "TLSv1.3"


async def test_an_untrusted_certificate_fails_and_is_told_all_the_same(tls: Tls) -> None:
    async with http_server({"/": response("200 OK")}, tls=tls.server) as server:
        measurement = await run(HttpSpec(url=server.url))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert reason_of(measurement) == ("tls_failed", "target")
    (hop,) = hops_of(measurement)
    assert "self-signed certificate" in hop["error"].replace("self signed", "self-signed")
    assert hop["tls"]["verified"] is False
    assert hop["tls"]["certificate"]["sha256"] == tls.sha256
    assert 29 < hop["tls"]["expires_in_days"] <= 30
    assert list(hop["phases"]) == TLS_PHASES[:3]
    assert server.requests == []


async def test_a_second_look_that_fails_says_so_in_words(tls: Tls) -> None:
    """Only the first connection gets TLS, the one that wants the certificate does not."""
    accepted = []

    def handshake(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), tls.server.wrap_socket(sock, server_side=True) as secure:
            secure.recv(1)

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            sock, _peer = listener.accept()
            accepted.append(sock)
            if len(accepted) == 1:
                handshake(sock)
            else:
                sock.sendall(b"220 mail.example ESMTP\r\n")
                sock.recv(65_536)
                sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        serving = asyncio.get_running_loop().run_in_executor(None, serve, listener)
        port = listener.getsockname()[1]
        measurement = await run(HttpSpec(url=f"https://127.0.0.1:{port}/"))
        await serving

    told = hops_of(measurement)[0]["tls"]
    assert told["certificate"] is None
    assert "wrong version number" in told["certificate_error"]


async def test_a_certificate_for_another_name_is_not_accepted(tls: Tls) -> None:
    async with http_server({"/": response("200 OK")}, tls=tls.server) as server:
        names = {"bad.example": "127.0.0.1", "good.example.": "127.0.0.1"}
        bad = await run(
            HttpSpec(url=f"https://bad.example:{server.port}/"), names=names, contexts=tls.trusting
        )
        good = await run(
            HttpSpec(url=f"https://good.example.:{server.port}/"),
            names=names,
            contexts=tls.trusting,
        )

    assert reason_of(bad) == ("tls_failed", "target")
    assert "bad.example" in hops_of(bad)[0]["error"]
    assert good.outcome is Outcome.OK


async def test_verification_can_be_left_out(tls: Tls) -> None:
    async with http_server({"/": response("200 OK")}, tls=tls.server) as server:
        measurement = await run(HttpSpec(url=server.url, verify=False))

    assert measurement.outcome is Outcome.OK
    facts = hops_of(measurement)[0]["tls"]
    assert facts["verified"] is False
    assert facts["certificate"]["sha256"] == tls.sha256


async def test_a_server_without_tls_is_told() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        measurement = await run(HttpSpec(url=f"https://127.0.0.1:{port}/"))

    assert reason_of(measurement) == ("tls_failed", "target")
    assert "wrong version number" in hops_of(measurement)[0]["error"]


async def test_a_handshake_that_is_hung_up_on_is_told() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        measurement = await run(HttpSpec(url=f"https://127.0.0.1:{port}/"))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert reason_of(measurement) == ("tls_failed", "target")
    assert list(hops_of(measurement)[0]["phases"]) == TLS_PHASES[:3]


async def test_a_large_body_over_tls_arrives_whole(tls: Tls) -> None:
    body = bytes(range(256)) * 2000
    async with http_server({"/": response("200 OK", body)}, tls=tls.server) as server:
        measurement = await run(HttpSpec(url=server.url), contexts=tls.trusting)

    assert hops_of(measurement)[0]["body"]["sha256"] == hashlib.sha256(body).hexdigest()


async def test_a_redirect_from_plain_to_tls_is_followed(tls: Tls) -> None:
    async with http_server({"/": response("200 OK")}, tls=tls.server) as secure:
        routes = {"/": response("308 Moved", location=f"{secure.url}/")}
        async with http_server(routes) as plain:
            measurement = await run(HttpSpec(url=plain.url), contexts=tls.trusting)

    first, second = hops_of(measurement)
    assert list(first["phases"]) == PLAIN_PHASES
    assert list(second["phases"]) == TLS_PHASES


def test_servers_know_their_url() -> None:
    assert HttpServer("::1", 80, "http").url == "http://[::1]:80"
