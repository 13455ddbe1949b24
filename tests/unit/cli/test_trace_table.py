"""A trace as a table: rows, times, loss and notes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.trace_table import icmp_mark, table_lines
from support.traces import hop, lost, probe, trace_value


def table(*hops: dict[str, Any], has_loss: bool = False, **more: Any) -> list[str]:
    names = more.pop("names", {})
    return table_lines(trace_value("192.0.2.9", *hops, **more), names, has_loss=has_loss)


def notes(*hops: dict[str, Any], **more: Any) -> list[str]:
    """Return what stands under NOTES."""
    heading, *rows = table(*hops, **more)
    at = heading.index("NOTES")
    return [row[at:] for row in rows]


# ── rows ──


def test_a_hop_is_a_row() -> None:
    assert table(
        hop(1, probe("192.0.2.1", 0.4123)),
        hop(2, probe("2001:db8::2", 12.345)),
        hop(3, lost(0), lost(1), lost(2)),
        hop(4, probe("192.0.2.9", 1234.5, icmp=(0, 0)), reached=True),
    ) == [
        "TTL  ADDRESS      RTT MS  NOTES",
        "  1  192.0.2.1    0.412",
        "  2  2001:db8::2  12.3",
        "  3  *",
        "  4  192.0.2.9    1234",
    ]


def test_every_responder_has_a_row_and_the_ttl_stands_once() -> None:
    lines = table(
        hop(7, probe("192.0.2.1", 1.5, 0), probe("192.0.2.2", 2.5, 1), probe("192.0.2.1", 1.25, 2))
    )
    assert [line.split() for line in lines[1:]] == [
        ["7", "192.0.2.1", "1.500", "1.250"],
        ["192.0.2.2", "2.500"],
    ]


def test_lost_attempts_stand_where_they_were_made() -> None:
    (row,) = table(hop(3, lost(0), probe("192.0.2.1", 1.0, 1), lost(2)))[1:]
    assert row.split() == ["3", "192.0.2.1", "*", "1.000", "*"]


def test_many_times_are_summed_up() -> None:
    probes = [probe("192.0.2.1", float(number + 1), number) for number in range(6)]
    (row,) = table(hop(1, *probes))[1:]
    assert row.endswith("min 1.000 avg 3.500 max 6.000")
    (row,) = table(hop(1, *map(lost, range(6))))[1:]
    assert row.split() == ["1", "*"]


def test_loss_is_told_where_every_hop_was_asked_as_often() -> None:
    hops = (
        hop(1, probe("192.0.2.1", 1.0, 0), probe("192.0.2.1", 1.0, 1), lost(2)),
        hop(2, lost(0), lost(1), lost(2)),
        hop(3, lost(0, "tx_error: No buffer space available")),
        hop(4, *(probe("192.0.2.4", 1.0, number) for number in range(3))),
    )
    heading, *rows = table(*hops, has_loss=True)
    at = heading.index("LOSS")
    assert [row[at : at + 6].strip() for row in rows] == ["33.3 %", "100 %", "-", "0 %"]
    assert "LOSS" not in table(*hops)[0]


def test_an_answer_that_was_late_or_came_twice_is_no_answer_in_time() -> None:
    late = probe("192.0.2.1", 1900.0, 0, late=True)
    twice = probe("192.0.2.1", 1.5, 1, duplicate=True)
    heading, row = table(
        hop(1, late, lost(0), probe("192.0.2.1", 1.0, 1), twice, twice), has_loss=True
    )
    assert row[heading.index("RTT MS") :].split("  ")[:2] == ["*", "1.000"]
    assert "50 %" in row
    assert row.endswith("1 late, 2 duplicate")


def test_names_are_made_harmless() -> None:
    lines = table(hop(1, probe("192.0.2.1", 1.0)), names={"192.0.2.1": "a\x1b[2Jb"})
    assert "a\\x1b[2Jb (192.0.2.1)" in lines[1]


# ── notes ──


def test_label_stacks() -> None:
    stack = [
        {"label": 24001, "tc": 0, "bottom": False, "ttl": 1},
        {"label": 17, "tc": 5, "bottom": True, "ttl": 254},
    ]
    others = [
        {"class": 1, "type": 1, "data": "05dc1101"},
        {"class": 2, "type": 10, "data": "00"},
    ]
    assert notes(hop(1, probe("192.0.2.1", 1.0, mpls=stack, extensions=others))) == [
        "MPLS 24001 (tc 0, ttl 1) / 17 (tc 5, ttl 254), extension 2/10"
    ]


def test_other_extensions() -> None:
    both = [{"class": 1, "type": 1, "data": ""}, {"class": 2, "type": 13, "data": "00"}]
    told = [
        {"role": "arrival", "if_index": 5, "name": "ge-0/0/1\x1b"},
        {"role": "next_hop", "if_index": 6, "address": "192.0.2.6"},
        {"role": "departure", "if_index": 7},
    ]
    assert notes(hop(1, probe("192.0.2.1", 1.0, extensions=both))) == ["extension 2/13"]
    assert notes(hop(1, probe("192.0.2.1", 1.0, extensions=both, interfaces=told))) == [
        "arrival ge-0/0/1\\x1b, next hop 192.0.2.6, departure number 7"
    ]
    assert notes(hop(1, probe("192.0.2.1", 1.0, extensions_untrusted="30"))) == [
        "extension that lies"
    ]


def test_where_translation_begins() -> None:
    hops = [hop(ttl, probe(f"192.0.2.{ttl}", 1.0, nat=ttl > 1)) for ttl in range(1, 4)]
    assert notes(*hops, nat_ttl=2) == ["", "NAT begins here", ""]
    assert notes(*hops) == ["", "", ""]


def test_where_the_mtu_narrows() -> None:
    hops = (hop(1, probe("192.0.2.1", 1.0)), hop(2, probe("192.0.2.2", 1.0)))
    pmtu = {"mtu": 1400, "ttl": 2, "address": "192.0.2.2", "black_hole": False}
    assert notes(*hops, pmtu=pmtu) == ["", "MTU 1400 from here"]
    del pmtu["ttl"]
    assert notes(*hops, pmtu=pmtu) == ["", "MTU 1400 from here"]
    assert notes(*hops, pmtu={"mtu": 1500, "black_hole": False}) == ["", ""]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"loss_class": "rate_limited", "loss_confidence": 0.971}, "rate-limited (97 %)"),
        ({"loss_class": "unknown", "loss_confidence": 0}, "lost for unknown reasons"),
        ({"loss_class": "path"}, "lost on the path"),
        ({"loss_class": "news"}, "news"),
        ({}, ""),
    ],
)
def test_classes_of_loss(fields: dict[str, Any], text: str) -> None:
    assert notes(hop(1, lost(0), lost(1), **fields)) == [text]


def test_what_this_host_did_not_send() -> None:
    error = "tx_error: No buffer space available"
    assert notes(hop(1, lost(0, error), lost(1, error))) == [error]


def test_what_a_tcp_port_says() -> None:
    answers = [
        {"attempt": 0, "address": "192.0.2.9", "rtt_ms": 1.0, "late": False, "duplicate": False}
    ]
    assert notes(hop(1, answers[0] | {"tcp": "syn_ack"})) == ["open"]
    assert notes(hop(1, answers[0] | {"tcp": "rst"})) == ["closed"]


@pytest.mark.parametrize(
    ("version", "icmp", "mark"),
    [
        (4, (11, 0), ""),
        (4, (0, 0), ""),
        (4, (3, 0), "!N"),
        (4, (3, 1), "!H"),
        (4, (3, 2), "!P"),
        (4, (3, 3), ""),
        (4, (3, 4), "!F-1400"),
        (4, (3, 13), "!X"),
        (4, (3, 16), "!<3-16>"),
        (4, (12, 0), "!<12-0>"),
        (6, (3, 0), ""),
        (6, (129, 0), ""),
        (6, (1, 0), "!N"),
        (6, (1, 1), "!X"),
        (6, (1, 3), "!H"),
        (6, (1, 4), ""),
        (6, (1, 9), "!<1-9>"),
        (6, (2, 0), "!F-1400"),
        (6, (4, 1), "!<4-1>"),
    ],
)
def test_marks_of_icmp_errors(version: int, icmp: tuple[int, int], mark: str) -> None:
    assert icmp_mark(version, *icmp, 1400) == mark


def test_marks_stand_with_who_sent_them() -> None:
    one = probe("192.0.2.1", 1.0, 0)
    other = probe("192.0.2.2", 1.0, 1, icmp=(3, 13))
    assert notes(hop(5, one, other)) == ["", "!X"]


# ── whatever comes ──

ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"])
PROBES = st.one_of(
    st.builds(
        probe,
        ADDRESSES,
        st.floats(0, 60_000),
        st.integers(0, 99),
        st.tuples(st.integers(0, 255), st.integers(0, 255)),
        late=st.booleans(),
        duplicate=st.booleans(),
        mtu=st.integers(0, 65_535),
    ),
    st.builds(lost, st.integers(0, 99), st.sampled_from(["timeout", "tx_error: \x1b"])),
)


@given(st.lists(st.lists(PROBES, min_size=1, max_size=8), max_size=6), st.booleans())
def test_every_responder_is_shown_at_its_ttl(
    found: list[list[dict[str, Any]]], has_loss: bool
) -> None:
    hops = [hop(ttl, *probes) for ttl, probes in enumerate(found, start=1)]
    _, *rows = table(*hops, has_loss=has_loss)
    expected = []
    for each in hops:
        addresses = dict.fromkeys(one["address"] for one in each["probes"] if "address" in one) or [
            "*"
        ]
        expected += [(each["ttl"], address) for address in addresses]
    shown = []
    ttl = 0
    for row in rows:
        ttl = int(row[:3]) if row[:3].strip() else ttl
        shown.append((ttl, row[5:].split()[0]))
        assert row.isprintable()
    assert shown == expected
