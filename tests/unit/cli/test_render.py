"""Result objects as lines for people."""

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.render import details, headline_text, latency_ms, milliseconds


def result(kind: str, *observations: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    specs: dict[str, dict[str, Any]] = {
        "dns": {"query": "example.net"},
        "http": {"url": "http://example.net/"},
        "tcp": {"host": "::1", "port": 80},
    }
    spec = specs.get(kind, {"host": "192.0.2.1"})
    return {
        "kind": kind,
        "spec": {"kind": kind, **spec},
        "outcome": "ok",
        "duration_ms": 12.5,
        "observations": [{"name": name, "value": value} for name, value in observations],
        **more,
    }


PING = result(
    "ping",
    (
        "ping_summary",
        {
            "sent": 4,
            "received": 3,
            "loss_pct": 25.0,
            "min_rtt_ms": 0.5,
            "avg_rtt_ms": 1.25,
            "max_rtt_ms": 12.0,
        },
    ),
)
LOST = result(
    "ping",
    ("ping_summary", {"sent": 4, "received": 0, "loss_pct": 100, "avg_rtt_ms": None}),
    outcome="target_error",
    error={"reason": "timeout", "failure_source": "path", "message": "no reply"},
)
TRACE = result(
    "trace",
    (
        "trace",
        {
            "hops": [
                {"ttl": 1, "address": "192.0.2.254", "rtt_ms": 0.4, "success": True},
                {"ttl": 1, "address": "192.0.2.253", "rtt_ms": 0.6, "success": True},
                {"ttl": 2, "address": None, "rtt_ms": None, "success": False, "probes": [{}, {}]},
                {"ttl": 3, "address": "192.0.2.1", "rtt_ms": 9.5, "reached_destination": True},
            ]
        },
    ),
)
DNS = result(
    "dns",
    (
        "dns_response",
        {"answers": [{"name": "example.net", "ttl": 60, "type": "A", "data": "192.0.2.7"}]},
    ),
    ("dns_summary", {"rtt_ms": 3.5, "server": "127.0.0.1:53", "types": {"A": "answer"}}),
)
HTTP = result(
    "http",
    (
        "http_response",
        {
            "status": 301,
            "url": "http://example.net/",
            "phases": {"resolve_ms": 1.0, "tls_ms": None},
        },
    ),
    ("http_summary", {"status": 200, "total_ms": 20.0, "size": 512, "redirects": 1}),
)
TCP = result("tcp", ("tcp_summary", {"success": True, "address": "[::1]:80", "rtt_ms": 0.05}))


@pytest.mark.parametrize(
    ("given_result", "line"),
    [
        (
            PING,
            "ok            ping   192.0.2.1  "
            "3/4 replies, loss 25 %, rtt min/avg/max 0.500/1.250/12.0 ms",
        ),
        (
            LOST,
            "target_error  ping   192.0.2.1  0/4 replies, loss 100 %; timeout: no reply",
        ),
        (TRACE, "ok            trace  192.0.2.1  3 hops, 9.500 ms"),
        (
            DNS,
            "ok            dns    example.net  A answer in 3.500 ms from 127.0.0.1:53",
        ),
        (
            HTTP,
            "ok            http   http://example.net/  "
            "status 200 after 1 redirect, 512 bytes in 20.0 ms",
        ),
        (TCP, "ok            tcp    [::1]:80  connected to [::1]:80 in 0.050 ms"),
    ],
)
def test_headlines(given_result: dict[str, Any], line: str) -> None:
    assert click.unstyle(headline_text(given_result)) == line


def test_dns_and_http_details() -> None:
    assert details(DNS) == ["    example.net  60  A  192.0.2.7"]
    assert details(HTTP) == ["    301  http://example.net/  resolve 1.000 ms"]
    assert details(TCP) == []


@pytest.mark.parametrize(
    ("given_result", "expected"),
    [(PING, 1.25), (LOST, None), (TRACE, 9.5), (DNS, 3.5), (HTTP, 20.0), (TCP, 0.05)],
)
def test_the_one_figure(given_result: dict[str, Any], expected: float | None) -> None:
    assert latency_ms(given_result) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0.000 ms"), (9.9994, "9.999 ms"), (10, "10.0 ms"), (1234.5, "1234 ms")],
)
def test_durations_have_as_many_digits_as_they_deserve(value: object, text: str) -> None:
    assert milliseconds(value) == text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
HOPS = st.lists(
    st.fixed_dictionaries(dict.fromkeys(("ttl", "address", "rtt_ms", "reached_destination"), JSON))
    | JSON,
    max_size=3,
)
FOREIGN = st.one_of(
    st.tuples(
        st.just("ping"), st.just("ping_summary"), st.just(("sent", "loss_pct", "avg_rtt_ms"))
    ),
    st.tuples(st.just("dns"), st.just("dns_summary"), st.just(("types", "rtt_ms", "server"))),
    st.tuples(st.just("dns"), st.just("dns_response"), st.just(("answers",))),
    st.tuples(st.just("http"), st.just("http_summary"), st.just(("status", "redirects"))),
    st.tuples(st.just("http"), st.just("http_response"), st.just(("phases", "status", "url"))),
    st.tuples(st.just("tcp"), st.just("tcp_summary"), st.just(("success", "address", "rtt_ms"))),
)


@given(
    FOREIGN.flatmap(
        lambda each: st.tuples(
            st.just(each[0]), st.just(each[1]), st.fixed_dictionaries(dict.fromkeys(each[2], JSON))
        )
    )
    | st.tuples(st.just("trace"), st.just("trace"), st.fixed_dictionaries({"hops": HOPS | JSON}))
)
def test_a_foreign_result_never_breaks_the_line(seen: tuple[str, str, dict[str, Any]]) -> None:
    kind, name, value = seen
    failed = {"reason": "\x1b", "failure_source": "", "message": "\n"}
    shown = result(kind, (name, value), outcome="target_error", error=failed)
    for line in [headline_text(shown), *details(shown)]:
        assert len(line.splitlines()) <= 1
        assert "\x1b" not in click.unstyle(line)
