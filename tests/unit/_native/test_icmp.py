"""The native packet core against a plain Python oracle, and the edges of the engine's face.

What needs sockets is in tests/integration/test_icmp.py.
"""

import struct
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import packet_core
from netsonde._native import icmp
from support import packets

VERSIONS: st.SearchStrategy[Literal[4, 6]] = st.sampled_from([4, 6])
EDGES = (0, 1, 65_534, 65_535)


@given(st.binary(max_size=400))
def test_checksum_is_rfc_1071(data: bytes) -> None:
    assert packet_core.checksum(data) == packets.checksum(data)


def test_checksum_of_extremes() -> None:
    assert packet_core.checksum(b"") == 0xFFFF
    assert packet_core.checksum(b"\xff" * 65_535) == packets.checksum(b"\xff" * 65_535)
    assert packet_core.checksum(b"\xff" * 65_536) == 0  # sums to 0xFFFF however often it wraps


@given(st.binary(min_size=8, max_size=200))
def test_a_packet_with_its_checksum_sums_to_zero(message: bytes) -> None:
    assert packet_core.checksum(packets.with_checksum(message)) in {0, 0xFFFF}


def test_siphash_gives_the_papers_value() -> None:
    assert packet_core.siphash24(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=64))
def test_siphash_matches_the_oracle(key: bytes, data: bytes) -> None:
    assert packet_core.siphash24(key, data) == packets.siphash24(key, data)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_siphash_wants_16_bytes_of_key(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        packet_core.siphash24(bytes(length), b"")


@given(VERSIONS, st.binary(max_size=200), st.booleans())
def test_ip_parser_survives_garbage(version: Literal[4, 6], data: bytes, quoted: bool) -> None:
    assert packet_core.parse_ip(version, data, quoted=quoted) == packets.parse_ip(
        version, data, quoted=quoted
    )


@given(VERSIONS, st.binary(max_size=300))
def test_message_parser_survives_garbage(version: Literal[4, 6], data: bytes) -> None:
    assert packet_core.parse_message(version, data) == packets.parse_message(version, data)


@st.composite
def almost_ipv6(draw: st.DrawFn) -> bytes:
    """An IPv6 packet with a chain of extension headers, cut somewhere."""
    kinds = draw(st.lists(st.sampled_from([0, 43, 44, 60, 135, 50, 58]), min_size=1, max_size=10))
    body = b""
    for following in (*kinds[1:], 58):
        words = draw(st.integers(0, 3))
        offset = draw(st.sampled_from([0, 0, 0, 8]))
        body += bytes([following, words]) + struct.pack("!H", offset) + bytes(4 + words * 8)
    body += draw(st.binary(max_size=40))
    packet = packets.ipv6("fd00::1", "fd00::2", body, next_header=kinds[0])
    return packet[: draw(st.integers(0, len(packet)))]


@given(almost_ipv6())
def test_extension_headers_are_walked_like_the_oracle_does(data: bytes) -> None:
    assert packet_core.parse_ip(6, data) == packets.parse_ip(6, data)


@given(
    VERSIONS,
    st.data(),
    st.integers(0, 255),
    st.binary(max_size=300),
    st.integers(0, 400),
)
def test_errors_are_read_like_the_oracle_does(
    version: Literal[4, 6], data: st.DataObject, length: int, payload: bytes, cut: int
) -> None:
    type_ = data.draw(st.sampled_from(packets.ERRORS[version]))
    request = packets.echo(version, "request", 1, 2, payload)
    quoted = (
        packets.ipv4("10.0.0.1", "10.0.0.2", request, options=bytes(8))
        if version == 4
        else packets.ipv6("fd00::1", "fd00::2", request)
    )
    rest = bytes([0, length, 0, 0]) if version == 4 else bytes([length, 0, 0, 0])
    message = packets.icmp(type_, 0, rest, quoted)[:cut]
    assert packet_core.parse_message(version, message) == packets.parse_message(version, message)


@pytest.mark.parametrize("ident", EDGES)
@pytest.mark.parametrize("sequence", EDGES)
def test_sixteen_bit_edges_are_read_back(ident: int, sequence: int) -> None:
    message = packets.echo(4, "reply", ident, sequence, b"payload")
    parsed = packet_core.parse_message(4, message)
    assert parsed == (0, 0, parsed[2], ident, sequence, b"payload", None)


def test_a_quote_keeps_source_and_destination_apart() -> None:
    request = packets.echo(4, "request", 7, 9, bytes(16))
    quoted = packets.ipv4("192.0.2.1", "198.51.100.9", request, ttl=1, tos=0x2E)
    quote = packet_core.parse_message(4, packets.icmp_error(11, 0, quoted))[6]
    assert quote == (1, 0x2E, 1, bytes([192, 0, 2, 1]), bytes([198, 51, 100, 9]), request)


@pytest.mark.parametrize(
    ("fragment", "is_first"), [(0x0000, True), (0x4000, True), (0x2000, True), (0x2001, False)]
)
def test_a_later_fragment_has_no_icmp_header(fragment: int, is_first: bool) -> None:
    packet = bytearray(packets.ipv4("192.0.2.1", "192.0.2.2", bytes(8)))
    packet[6:8] = struct.pack("!H", fragment)
    for quoted in (False, True):
        parsed = packet_core.parse_ip(4, bytes(packet), quoted=quoted)
        assert parsed == packets.parse_ip(4, bytes(packet), quoted=quoted)
        assert (parsed != "foreign") is is_first
    error = packet_core.parse_message(4, packets.icmp_error(3, 1, bytes(packet)))
    assert (error[6] != "foreign") is is_first


@pytest.mark.parametrize("version", [-1, 0, 5, 7])
def test_parsers_know_two_versions(version: int) -> None:
    for parse in (packet_core.parse_ip, packet_core.parse_message):
        with pytest.raises(ValueError, match="4 or 6"):
            parse(version, bytes(60))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": 5}, "family"),
        ({"family": 4, "backend": "tcp"}, "backend"),
        ({"family": 6, "backend": "header"}, "backend"),
        ({"family": 4, "secret": b"short"}, "16 bytes"),
        ({"family": 4, "capacity": 0}, "capacity"),
        ({"family": 4, "capacity": icmp.CAPACITY_MAX + 1}, "capacity"),
        ({"family": 4, "linger_ns": -1}, "linger_ns"),
        ({"family": 4, "linger_ns": icmp.LINGER_MAX_NS + 1}, "linger_ns"),
        ({"family": 4, "prefix_pps": -1}, "prefix_pps"),
        ({"family": 4, "target_pps": 1.1e9}, "target_pps"),
        ({"family": 4, "target_pps": float("nan")}, "target_pps"),
        ({"family": 4, "budgets": (icmp.PacketBudget(1),) * 5}, "at most 4 budgets"),
    ],
)
def test_engine_refuses_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        icmp.EchoEngine(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("ident", [-1, 65_536])
def test_identifier_is_16_bits(ident: int) -> None:
    with pytest.raises(OverflowError):
        icmp.EchoEngine(4, ident=ident)


def test_records_have_the_documented_sizes() -> None:
    assert struct.calcsize(icmp.REQUEST_FORMAT) == 56
    assert struct.calcsize(icmp.COMPLETION_FORMAT) == 48


@pytest.mark.parametrize(
    ("samples", "steps"),
    [
        ([], 0),
        ([(100, 200)], 0),
        ([(10_000, 20_000), (15_000, 90_000), (0, 16_000)], 0),  # they share 15 000 to 16 000
        ([(10_000, 20_000), (21_001, 30_000)], 1),
        ([(10_000, 20_000), (20_900, 30_000)], 0),  # within rounding
        ([(10_000, 20_000), (0, 8_000)], 1),
        ([(10_000, 20_000), (50_000, 60_000), (10_000, 20_000)], 2),
        ([(0, 10_000), (9_000, 20_000), (0, 7_000)], 1),  # overlaps each, but not both at once
        ([(-(2**62), 2**62), (2**61, 2**62)], 0),
    ],
)
def test_disjoint_samples_prove_a_clock_step(samples: list[tuple[int, int]], steps: int) -> None:
    assert packet_core.count_steps(samples) == steps


@pytest.mark.parametrize("rate_pps", [0, -1, 1.1e9, float("nan"), float("inf")])
def test_a_budget_has_a_rate(rate_pps: float) -> None:
    with pytest.raises(ValueError, match="rate_pps"):
        icmp.PacketBudget(rate_pps)


@pytest.mark.parametrize("rate_pps", [1e-300, 0.5, 1e9])
def test_a_budget_says_its_rate(rate_pps: float) -> None:
    assert icmp.PacketBudget(rate_pps).rate_pps == rate_pps


def test_only_budgets_are_budgets() -> None:
    with pytest.raises(TypeError):
        icmp.EchoEngine(4, budgets=(5,))  # type: ignore[arg-type]


def unpack(records: bytes) -> list[tuple[object, ...]]:
    return list(struct.iter_unpack(icmp.REQUEST_FORMAT, records))


@pytest.mark.parametrize(("family", "width"), [(4, 4), (6, 16)])
def test_requests_are_packed_like_struct_does(family: Literal[4, 6], width: int) -> None:
    first, second = bytes(range(width)), bytes(range(100, 100 + width))
    packed = icmp.pack_requests(
        family, first + second, token=5, timeout_ns=7, size=99, ttl=3, tos=8, path=2, count=11,
        interval_ns=13, token_shift=40, flags=icmp.DF,
    )  # fmt: skip
    rest = (0, 11, 99, 2, 3, 8, icmp.DF)
    assert unpack(packed) == [
        (5, 13, 7, first.ljust(16, b"\0"), *rest),
        (5 + (1 << 40), 13, 7, second.ljust(16, b"\0"), *rest),
    ]


def test_tokens_of_packed_requests_wrap() -> None:
    tokens = [each[0] for each in unpack(icmp.pack_requests(4, bytes(12), token=2**64 - 2,
                                                            timeout_ns=1))]  # fmt: skip
    assert tokens == [2**64 - 2, 2**64 - 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": 4, "addresses": bytes(5)}, "whole IPv4"),
        ({"family": 6, "addresses": bytes(4)}, "whole IPv6"),
        ({"family": 5, "addresses": b""}, "whole IPv5"),
        ({"family": 4, "addresses": bytes(4), "token_shift": 64}, "token_shift"),
        ({"family": 4, "addresses": bytes(4), "token_shift": -1}, "token_shift"),
    ],
)
def test_packing_refuses_what_is_not_a_list_of_addresses(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        icmp.pack_requests(token=0, timeout_ns=1, **arguments)  # type: ignore[arg-type]
