"""DNS checks against real servers of this host's loopback."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from netsonde.clock import SystemClock
from netsonde.model import DnsSpec, Measurement, Outcome
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.dns import DnsProber
from support.dns_server import Query, dns_server, silent_port, with_rcode, zone

ZONE = zone(
    "example.net 300 A 192.0.2.1",
    "example.net 300 A 192.0.2.2",
    "example.net 60 AAAA 2001:db8::1",
    "example.net 60 MX 10 mail.example.net.",
    "example.net 60 NS ns1.example.net.",
    'example.net 60 TXT "v=spf1 -all" "second"',
    "www.example.net 30 CNAME web.example.net.",
    "web.example.net 30 CNAME example.net.",
    "four.example.net 30 A 192.0.2.4",
)
LARGE = zone(
    *(f"large.example 60 A 198.51.{high}.{low}" for high in range(2) for low in range(100))
)


async def run(
    spec: DnsSpec, *, policy: TargetPolicy | None = None, resolv_conf: Path | None = None
) -> Measurement:
    clock = SystemClock()
    record = Recorder(clock)
    prober = DnsProber(
        clock,
        policy or TargetPolicy.person(),
        resolv_conf=resolv_conf or Path("/nonexistent/resolv.conf"),
    )
    await measure(prober, spec, record)
    await prober.close()
    return record.measurement()


def named(measurement: Measurement, name: str) -> list[dict[str, Any]]:
    return [each.value for each in measurement.observations if each.name == name]


def summary_of(measurement: Measurement) -> dict[str, Any]:
    (summary,) = named(measurement, "dns_summary")
    assert measurement.observations[-1].name == "dns_summary"
    return dict(summary)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_and_aaaa_are_asked_by_default(address: str) -> None:
    async with dns_server(ZONE, address) as server:
        measurement = await run(DnsSpec(query="example.net", server=server.spec))

    assert measurement.outcome is Outcome.OK
    assert {query.rdtype for query in server.queries} == {"A", "AAAA"}
    assert sorted(each["address"] for each in named(measurement, "dns_a_record")) == [
        "192.0.2.1",
        "192.0.2.2",
    ]
    (record,) = named(measurement, "dns_aaaa_record")
    assert record == {
        "query": "example.net",
        "server": server.spec,
        "address": "2001:db8::1",
        "ttl": 60,
    }
    summary = summary_of(measurement)
    assert summary["success"] is True
    assert summary["types"] == {"A": "answer", "AAAA": "answer"}
    assert (summary["sent"], summary["received"]) == (2, 2)
    assert 0 < summary["rtt_ms"] < 1000
    assert measurement.env["source"] == address


async def test_a_response_tells_the_whole_exchange() -> None:
    async with dns_server(ZONE) as server:
        measurement = await run(DnsSpec(query="www.example.net", server=server.spec, qtype="A"))

    (response,) = named(measurement, "dns_response")
    assert response["rcode"] == "NOERROR"
    assert response["status"] == "answer"
    assert set(response["flags"]) >= {"QR", "RD", "RA"}
    assert response["counts"] == {"answer": 4, "authority": 0, "additional": 0}
    assert response["transport"] == "udp"
    assert response["rx_clock"] == "kernel"
    assert response["tx_clock"] == "user"
    assert response["size"] > 12
    assert 0 < response["rtt_ms"] < 1000
    assert response["phases"] == {"response_ms": response["rtt_ms"]}
    assert response["answers"][0] == {
        "name": "www.example.net",
        "ttl": 30,
        "type": "CNAME",
        "data": "web.example.net.",
    }


async def test_answers_behind_aliases_are_records() -> None:
    async with dns_server(ZONE) as server:
        measurement = await run(DnsSpec(query="www.example.net", server=server.spec))

    assert len(named(measurement, "dns_a_record")) == 2
    assert {each["query"] for each in named(measurement, "dns_a_record")} == {"www.example.net"}


@pytest.mark.parametrize(
    ("qtype", "name", "fields"),
    [
        ("MX", "dns_mx_record", {"preference": 10, "exchange": "mail.example.net"}),
        ("NS", "dns_ns_record", {"host": "ns1.example.net"}),
        ("TXT", "dns_txt_record", {"data": ["v=spf1 -all", "second"]}),
        ("txt", "dns_txt_record", {"data": ["v=spf1 -all", "second"]}),
        (16, "dns_txt_record", {"data": ["v=spf1 -all", "second"]}),
        ("16", "dns_txt_record", {"data": ["v=spf1 -all", "second"]}),
        ("TYPE16", "dns_txt_record", {"data": ["v=spf1 -all", "second"]}),
    ],
)
async def test_each_type_has_its_record(qtype: Any, name: str, fields: dict[str, Any]) -> None:
    async with dns_server(ZONE) as server:
        measurement = await run(DnsSpec(query="example.net", server=server.spec, qtype=qtype))

    (record,) = named(measurement, name)
    assert record == {"query": "example.net", "server": server.spec, "ttl": 60} | fields


async def test_the_type_may_stand_in_the_query() -> None:
    async with dns_server(ZONE) as server:
        measurement = await run(DnsSpec(query="MX example.net", server=server.spec))

    assert [query.rdtype for query in server.queries] == ["MX"]
    assert summary_of(measurement)["query"] == "example.net"


async def test_the_reverse_name_of_an_address_is_asked_for() -> None:
    async with dns_server(zone("1.2.0.192.in-addr.arpa 60 PTR example.net.")) as server:
        measurement = await run(DnsSpec(query="192.0.2.1", qtype="PTR", server=server.spec))

    assert named(measurement, "dns_response")[0]["answers"][0]["data"] == "example.net."


async def test_nothing_nobody_and_failure_are_told_apart() -> None:
    async with dns_server(ZONE) as server:
        nodata = await run(DnsSpec(query="four.example.net", server=server.spec, qtype="AAAA"))
        nobody = await run(DnsSpec(query="nobody.example.net", server=server.spec))

    assert nodata.outcome is Outcome.OK
    assert summary_of(nodata)["types"] == {"AAAA": "nodata"}
    assert nobody.outcome is Outcome.OK
    assert summary_of(nobody)["types"] == {"A": "nxdomain", "AAAA": "nxdomain"}
    assert named(nobody, "dns_response")[0]["rcode"] == "NXDOMAIN"


@pytest.mark.parametrize(
    ("rcode", "reason"),
    [
        (dns.rcode.SERVFAIL, "mismatch"),
        (dns.rcode.REFUSED, "mismatch"),
        (dns.rcode.NOTAUTH, "mismatch"),
        (dns.rcode.FORMERR, "protocol_error"),
        (dns.rcode.NOTIMP, "protocol_error"),
    ],
)
async def test_an_rcode_that_is_no_answer_fails(rcode: dns.rcode.Rcode, reason: str) -> None:
    async with dns_server(with_rcode(rcode)) as server:
        measurement = await run(DnsSpec(query="example.net", server=server.spec, qtype="A"))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (reason, "target")
    assert dns.rcode.to_text(rcode) in measurement.error.message
    (error,) = named(measurement, "dns_error")
    assert (error["query"], error["server"], error["type"]) == ("example.net", server.spec, "A")
    assert summary_of(measurement)["types"] == {"A": dns.rcode.to_text(rcode).lower()}
    assert len(server.queries) == 1  # an answer is not asked for again


async def test_an_extended_error_is_told() -> None:
    def respond(query: Query) -> list[bytes]:
        response = dns.message.make_response(query.message)
        response.set_rcode(dns.rcode.SERVFAIL)
        option = dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS, "signature expired")
        response.use_edns(0, options=[option])
        return [response.to_wire()]

    async with dns_server(respond) as server:
        measurement = await run(DnsSpec(query="example.net", server=server.spec, qtype="A"))

    (response,) = named(measurement, "dns_response")
    assert response["ede"] == [{"code": 6, "text": "signature expired"}]


async def test_a_truncated_answer_is_fetched_over_tcp_and_both_are_timed() -> None:
    async with dns_server(LARGE) as server:
        measurement = await run(DnsSpec(query="large.example", server=server.spec, qtype="A"))

    assert measurement.outcome is Outcome.OK
    udp, tcp = named(measurement, "dns_response")
    assert (udp["transport"], udp["status"]) == ("udp", "truncated")
    assert "TC" in udp["flags"]
    assert (tcp["transport"], tcp["status"]) == ("tcp", "answer")
    assert set(tcp["phases"]) == {"connect_ms", "request_ms", "response_ms"}
    assert udp["rtt_ms"] > 0
    assert tcp["rtt_ms"] > 0
    assert tcp["counts"]["answer"] == 200
    assert tcp["size"] > 1232
    assert tcp["answers_cut"] is True
    assert len(tcp["answers"]) == len(named(measurement, "dns_a_record")) == 150


async def test_a_cut_truncated_answer_is_fetched_over_tcp_too() -> None:
    def respond(query: Query) -> list[bytes]:
        (wire,) = LARGE(Query(query.message, "tcp", query.client))
        if query.transport == "tcp":
            return [wire]
        return [wire[:2] + bytes([wire[2] | 0x02]) + wire[3:505]]  # in the middle of a record

    async with dns_server(respond) as server:
        measurement = await run(DnsSpec(query="large.example", server=server.spec, qtype="A"))

    assert [each["transport"] for each in named(measurement, "dns_response")] == ["udp", "tcp"]
    assert measurement.outcome is Outcome.OK


async def test_tcp_can_be_asked_for() -> None:
    async with dns_server(ZONE) as server:
        measurement = await run(
            DnsSpec(query="example.net", server=server.spec, qtype="A", transport="tcp")
        )

    assert [query.transport for query in server.queries] == ["tcp"]
    assert measurement.outcome is Outcome.OK


async def test_answers_that_are_not_ours_are_counted_and_passed_over() -> None:
    def respond(query: Query) -> list[bytes]:
        (right,) = ZONE(query)
        wrong_id = bytes([right[0] ^ 0xFF, right[1]]) + right[2:]
        other = dns.message.make_query("other.example", "A", id=query.message.id)
        other_question = dns.message.make_response(other).to_wire()
        return [wrong_id, b"\0", b"garbage that is long enough", other_question, right]

    async with dns_server(respond) as server:
        measurement = await run(DnsSpec(query="example.net", server=server.spec, qtype="A"))

    assert measurement.outcome is Outcome.OK
    (response,) = named(measurement, "dns_response")
    assert response["strays"] == 4
    assert len(named(measurement, "dns_a_record")) == 2


async def test_an_answer_from_elsewhere_is_not_heard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as spoofer:

        def respond(query: Query) -> list[bytes]:
            (right,) = ZONE(query)
            spoofer.sendto(right, query.client)
            return []

        async with dns_server(respond) as server:
            measurement = await run(
                DnsSpec(
                    query="example.net", server=server.spec, qtype="A", timeout_ms=50, retries=0
                )
            )

    assert measurement.error is not None
    assert measurement.error.reason == "timeout"
    assert named(measurement, "dns_response")[0]["strays"] == 0


async def test_garbage_with_the_right_id_is_a_protocol_error() -> None:
    def respond(query: Query) -> list[bytes]:
        (right,) = ZONE(query)
        return [right[:-3]]

    async with dns_server(respond) as server:
        measurement = await run(
            DnsSpec(query="example.net", server=server.spec, qtype="A", timeout_ms=50)
        )

    assert measurement.error is not None
    assert measurement.error.reason == "protocol_error"
    assert "not a DNS message" in measurement.error.message


async def test_silence_is_retried_and_then_a_timeout() -> None:
    async with dns_server(lambda query: []) as server:
        measurement = await run(
            DnsSpec(query="example.net", server=server.spec, qtype="A", timeout_ms=30, retries=2)
        )

    assert len(server.queries) == 3
    assert len({query.message.id for query in server.queries}) == 3
    assert len({query.client[1] for query in server.queries}) > 1
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("timeout", "target")
    assert [each["try"] for each in named(measurement, "dns_response")] == [1, 2, 3]
    summary = summary_of(measurement)
    assert (summary["sent"], summary["received"], summary["rtt_ms"]) == (3, 0, None)


async def test_a_retry_that_is_answered_is_a_success() -> None:
    seen: list[Query] = []

    def respond(query: Query) -> list[bytes]:
        seen.append(query)
        return [] if len(seen) == 1 else list(ZONE(query))

    async with dns_server(respond) as server:
        measurement = await run(
            DnsSpec(query="example.net", server=server.spec, qtype="A", timeout_ms=100)
        )

    assert measurement.outcome is Outcome.OK
    assert [each.get("reason") for each in named(measurement, "dns_response")] == ["timeout", None]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_closed_port_is_told(transport: Any, address: str) -> None:
    with silent_port(address) as sock:
        port = sock.getsockname()[1]
    server = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    measurement = await run(
        DnsSpec(query="example.net", server=server, qtype="A", transport=transport)
    )

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("refused", "target")


async def test_a_server_that_hangs_up_within_an_answer_is_a_protocol_error() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(b"\x02\x00partial")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        measurement = await run(
            DnsSpec(query="example.net", server=f"127.0.0.1:{port}", qtype="A", transport="tcp")
        )

    assert measurement.error is not None
    assert measurement.error.reason == "protocol_error"


async def test_a_failing_type_does_not_hide_the_other() -> None:
    def respond(query: Query) -> list[bytes]:
        answer = with_rcode(dns.rcode.SERVFAIL) if query.rdtype == "AAAA" else ZONE
        return list(answer(query))

    async with dns_server(respond) as server:
        measurement = await run(DnsSpec(query="example.net", server=server.spec))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert len(named(measurement, "dns_a_record")) == 2
    assert len(named(measurement, "dns_error")) == 1
    assert summary_of(measurement)["types"] == {"A": "answer", "AAAA": "servfail"}


async def test_the_systems_servers_are_taken_in_turn(tmp_path: Path) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("")

    measurement = await run(DnsSpec(query="example.net"), resolv_conf=resolv_conf)

    assert measurement.error is not None
    assert measurement.error.reason == "resolve_failed"
    assert str(resolv_conf) in measurement.error.message
    assert summary_of(measurement)["success"] is False


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.1:5353", "[::1]:53", "10.0.0.1"])
async def test_an_agents_policy_guards_the_server(server: str) -> None:
    measurement = await run(DnsSpec(query="example.net", server=server), policy=TargetPolicy())

    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("denied", "policy")
    assert summary_of(measurement)["reason"] == "denied"


async def test_a_cancelled_check_keeps_what_it_saw() -> None:
    clock = SystemClock()
    record = Recorder(clock)
    prober = DnsProber(clock, TargetPolicy.person())
    asked_again = asyncio.Event()
    seen: list[str] = []

    def respond(query: Query) -> list[bytes]:
        seen.append(query.rdtype)
        if seen.count("AAAA") == 2:  # long after the answer to the A question
            asked_again.set()
        return [] if query.rdtype == "AAAA" else list(ZONE(query))

    async with dns_server(respond) as server:
        spec = DnsSpec(query="example.net", server=server.spec, timeout_ms=100)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(measure(prober, spec, record))
            await asked_again.wait()
            task.cancel()

    measurement = record.measurement()
    assert len(named(measurement, "dns_a_record")) == 2
    summary = summary_of(measurement)
    assert (summary["cancelled"], summary["success"]) == (True, False)
