"""What the chaos proxy reads of messages, what it marks, and what it makes of them."""

from random import Random

import msgspec
import pytest
from msgspec.structs import replace

from support.chaos.bodies import read_answer, read_path, read_request
from support.chaos.damage import PAGE, damaged, storm
from support.chaos.evidence import ConfigSaid, Grant, Metered
from support.chaos.faults import Fault
from support.chaos.framing import BODY_MAX_BYTES, FramingError, Head, parse_head

REQUEST = (
    b"POST /v1/agents/claim?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n"
    b"Connection: Close\r\n\r\n"
)
ANSWER = Head(b"HTTP/1.1 200 OK", [(b"Content-Length", b"4"), (b"Netsonde-Protocol", b"1")])


def claimed(*lease_ids: int) -> bytes:
    return msgspec.json.encode(
        {
            "claim_id": "c",
            "leases": [
                {
                    "lease_id": lease_id,
                    "task_id": lease_id + 1,
                    "kind": "http",
                    "lease_until_ms": 3000,
                    "granted_after_ms": 2,
                    "attempt": 1,
                    "max_attempts": 3,
                    "spec": {"kind": "http", "url": "http://127.0.0.1:9/t/5"},
                }
                for lease_id in lease_ids
            ],
        }
    )


def test_a_request_head_is_read() -> None:
    head = parse_head(REQUEST)
    assert (head.verb, head.body_bytes, head.is_last) == ("claim", 12, True)
    assert head.get(b"host") == b"h"


def test_an_answer_head_is_read_and_written_for_another_length() -> None:
    again = parse_head(ANSWER.encode(7))
    assert (again.status, again.body_bytes, again.is_last) == (200, 7, False)
    assert again.get(b"netsonde-protocol") == b"1"


def test_a_head_is_written_for_a_length_whatever_it_was_framed_by() -> None:
    chunked = Head(b"HTTP/1.1 200 OK", [(b"Transfer-Encoding", b"Chunked"), (b"X", b"1")])
    assert chunked.is_chunked
    again = parse_head(chunked.encode(7))
    assert (again.is_chunked, again.body_bytes, again.get(b"x")) == (False, 7, b"1")


def test_a_field_that_is_there_is_replaced() -> None:
    head = Head(b"POST /x HTTP/1.1", [(b"Accept", b"application/x-ndjson")])
    assert head.replaced(b"accept", b"application/json").get(b"accept") == b"application/json"
    assert head.replaced(b"range", b"0") == head


def test_no_length_is_no_body() -> None:
    assert parse_head(b"GET / HTTP/1.1\r\n\r\n").body_bytes == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nno colon\r\n\r\n", b"A\r\n: x\r\n\r\n"],
)
def test_what_is_no_head_is_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        parse_head(data)


@pytest.mark.parametrize(
    "field",
    [
        (b"Content-Length", b"-1"),
        (b"Content-Length", b"x"),
        (b"Content-Length", b"%d" % (BODY_MAX_BYTES + 1)),
        (b"Transfer-Encoding", b"chunked"),
    ],
)
def test_a_body_of_unknown_length_is_refused(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(FramingError):
        _ = Head(b"HTTP/1.1 200 OK", [field]).body_bytes


@pytest.mark.parametrize("start", [b"", b"POST /x", b"HTTP/1.1"])
def test_a_start_line_without_its_parts_is_refused(start: bytes) -> None:
    with pytest.raises(FramingError):
        _ = Head(start, []).verb
    with pytest.raises(FramingError):
        _ = Head(start, []).status


def test_a_claim_asks_for_its_slots() -> None:
    body = b'{"agent_id":1,"claim_id":"c","capacities":{"http":3,"dns":1}}'
    assert read_request("claim", body).asked == 4


def test_a_registration_asks_for_nothing() -> None:
    assert read_request("register", b'{"capacities":{"http":3}}').asked == 0


def test_a_report_names_its_leases() -> None:
    body = (
        b'{"agent_id":1,"completed":[{"lease_id":5,"outcome":"ok"}],"cancelled":[{"lease_id":6}]}'
    )
    assert read_request("report", body).items == [5, 6]


def test_granted_leases_are_read_and_marked() -> None:
    seen = read_request("claim", b"{}")
    body = msgspec.json.decode(read_answer("claim", 3, claimed(70, 71), seen))
    assert seen.grants == [Grant(70, 71, 3000, 2, 1, 3), Grant(71, 72, 3000, 2, 1, 3)]
    urls = [lease["spec"]["url"] for lease in body["leases"]]
    assert urls == ["http://127.0.0.1:9/t/5/a3/l70", "http://127.0.0.1:9/t/5/a3/l71"]
    assert body["claim_id"] == "c"


def test_the_target_reads_the_mark() -> None:
    assert read_path(b"/t/5/a3/l70") == (5, 3, 70)


@pytest.mark.parametrize("path", [b"/", b"/t/5", b"/t/5/l70/a3", b"/t/x/a3/l70", b"/x/5/a3/l70"])
def test_a_path_without_the_mark_is_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match=r"mark|invalid literal"):
        read_path(path)


def test_extensions_and_verdicts_are_read_and_passed_on_unchanged() -> None:
    extended = b'{"outcomes":[{"lease_id":5,"new_deadline_ms":3000}],"revoked":[6]}'
    reported = b'{"acknowledged":1,"results":[{"lease_id":5,"status":"accepted"}]}'
    seen = read_request("", b"")
    assert read_answer("extend", 0, extended, seen) is extended
    assert read_answer("report", 0, reported, seen) is reported
    assert (seen.extended, seen.results) == ([(5, 3000)], [(5, "accepted")])


def told(**more: object) -> bytes:
    counters = [
        {"name": "netsonde_agent_results_total", "labels": {"outcome": "ok"}, "value": 5},
        {"name": "netsonde_agent_retries_total", "value": 1},
    ]
    return msgspec.json.encode(
        {
            "agent_id": 7, "timestamp": "t", "instance_id": "i", "seq": 2, "start_time": "s",
            "counters": counters, "gauges": [{"name": "g", "value": 1}], **more,
        }
    )  # fmt: skip


def test_an_envelope_of_metrics_says_which_it_is_and_some_of_its_counters() -> None:
    seen = read_request("metrics", told())
    values = {"netsonde_agent_results_total outcome=ok": 5.0}
    said = Metered(agent_id=7, run="i s", seq=2, samples=3, values=values)
    assert seen.metered == said
    body = b'{"accepted":true,"id":"7/i/2","stored":3}'
    assert read_answer("metrics", 0, body, seen) is body
    assert seen.metered == replace(said, stored=3)
    read_answer("metrics", 0, b'{"accepted":true,"superseded":true}', seen)
    assert seen.metered == replace(said, stored=0, is_superseded=True)


def test_another_process_is_another_run() -> None:
    bodies = (told(), told(seq=3), told(start_time="later"), told(instance_id="j"))
    said = [read_request("metrics", body).metered for body in bodies]
    assert [one and one.run for one in said] == ["i s", "i s", "i later", "j s"]


def test_a_heartbeat_says_what_is_in_force() -> None:
    beat = b'{"agent_id":7,"config":{"applied":4,"status":"nack","revision":5,"reason":"expired"}}'
    said = ConfigSaid(applied=4, status="nack", revision=5, reason="expired")
    assert read_request("heartbeat", beat).config == said
    assert read_request("heartbeat", b'{"agent_id":7}').config is None


def test_a_truncated_answer_is_framed_as_if_it_were_whole() -> None:
    head, body = damaged(Fault.ANSWER_TRUNCATED, ANSWER, b'{"leases":[]}', Random(1))
    assert body == b'{"leas'
    assert parse_head(head.encode(len(body))).body_bytes == len(body)


def test_garbage_is_as_long_as_what_it_replaces() -> None:
    head, body = damaged(Fault.ANSWER_GARBAGE, ANSWER, b'{"leases":[]}', Random(1))
    assert len(body) == 13
    assert head is ANSWER
    assert body == damaged(Fault.ANSWER_GARBAGE, ANSWER, b'{"leases":[]}', Random(1))[1]


def test_a_page_is_a_success_of_somebody_else() -> None:
    head, body = damaged(Fault.ANSWER_PAGE, ANSWER, b"{}", Random(1))
    assert (head.status, body) == (200, PAGE)
    assert head.get(b"netsonde-protocol") is None


def test_storms_refuse_and_one_of_them_says_for_how_long() -> None:
    bare, _ = storm(Fault.STORM_429_BARE, Random(1))
    timed, _ = storm(Fault.STORM_429, Random(1))
    broken, _ = storm(Fault.STORM_5XX, Random(1))
    assert (bare.status, bare.get(b"retry-after")) == (429, None)
    assert (timed.status, timed.get(b"retry-after")) == (429, b"1")
    assert broken.status >= 500
