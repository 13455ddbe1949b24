"""The identity of trace probes: what is sent, whose answer a packet is, and when it came."""

import dataclasses
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsonde._native import trace
from support import quotes

SECRET = bytes(range(16))
SOURCE = {4: bytes([192, 0, 2, 99]), 6: bytes.fromhex("20010db8" + "00" * 11 + "99")}
DESTINATION = {4: bytes([198, 51, 100, 7]), 6: bytes.fromhex("20010db8" + "01" * 12)}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def make_table(version: int, *, traces_max: int = 8, ident_base: int = 0) -> trace.TraceTable:
    return trace.TraceTable(version, SECRET, traces_max=traces_max, ident_base=ident_base)


def begin(table: trace.TraceTable, version: int, **kwargs: int) -> int:
    handle = table.begin(SOURCE[version], DESTINATION[version], **kwargs)
    assert handle is not None
    return handle


def icmp_of(version: int, packet: bytes) -> bytes:
    return packet[quotes.IP_HEADER_BYTES[version] :]


# ── what is sent ──


@VERSIONS
def test_flow_is_constant_within_a_trace_and_from_trace_to_trace(version: int) -> None:
    table = make_table(version)
    traces = [begin(table, version) for _ in range(2)]

    packets = [
        table.packet(handle, ttl, attempt)
        for handle, ttl, attempt in itertools.product(traces, (1, 2, 30), (0, 2))
    ]

    assert len({icmp_of(version, packet)[:4] for packet in packets}) == 1
    assert len({packet[:4] for packet in packets}) == 1  # tos, length; version 6: flow label
    assert len({icmp_of(version, packet)[8:16] for packet in packets}) == len(packets)
    first = packets[: len(packets) // 2]
    assert len({icmp_of(version, packet)[4:6] for packet in first}) == 1


@VERSIONS
def test_flow_differs_between_destinations(version: int) -> None:
    table = make_table(version)
    other = DESTINATION[version][:-1] + b"\x08"
    second = table.begin(SOURCE[version], other)
    assert second is not None

    mine = table.packet(begin(table, version), 1, 0)
    theirs = table.packet(second, 1, 0)

    assert icmp_of(version, mine)[2:4] != icmp_of(version, theirs)[2:4]


@VERSIONS
@given(data=st.data())
def test_checksum_is_right_for_every_probe(version: int, data: st.DataObject) -> None:
    size = len(SOURCE[version])
    address = st.binary(min_size=size, max_size=size)
    source, destination = data.draw(address), data.draw(address)
    base = data.draw(st.integers(0, 65535))
    table = trace.TraceTable(
        version, data.draw(st.binary(min_size=16, max_size=16)), traces_max=1, ident_base=base
    )
    handle = table.begin(source, destination, first_ttl=1, last_ttl=255, attempts=16)
    assert handle is not None
    ttl, attempt = data.draw(st.integers(1, 255)), data.draw(st.integers(0, 15))

    packet = table.packet(handle, ttl, attempt)

    message = icmp_of(version, packet)
    pseudo = quotes.pseudo_header(source, destination, len(message)) if version == 6 else b""
    assert quotes.ones_complement_sum(pseudo + message) == 0xFFFF
    assert message[2:4] not in (b"\0\0", b"\xff\xff")
    assert message[0] == quotes.ECHO_REQUEST[version]
    assert int.from_bytes(message[4:6], "big") == base
    if version == 4:
        assert (packet[8], packet[12:16], packet[16:20]) == (ttl, source, destination)
    else:
        assert (packet[7], packet[8:24], packet[24:40]) == (ttl, source, destination)


# ── whose answer ──


@VERSIONS
@pytest.mark.parametrize("ttl", [1, 254, 255])
@pytest.mark.parametrize("attempt", [0, 15])
def test_every_kind_of_answer_finds_its_probe(version: int, ttl: int, attempt: int) -> None:
    table = make_table(version, ident_base=65535)
    begin(table, version)
    handle = begin(table, version, last_ttl=255, attempts=16)
    probe = table.packet(handle, ttl, attempt)

    answers = [
        quotes.echo_reply(version, probe),
        quotes.error(version, probe),
        quotes.error(version, probe, quoted_bytes=8),
        quotes.error(version, probe, quoted_bytes=15),
        quotes.error(version, probe, kind=quotes.UNREACHABLE[version], code=1),
        quotes.with_extensions(version, probe),
        quotes.with_extensions(version, probe, quoted_bytes=24),
    ]

    assert [table.match(answer) for answer in answers] == [(handle, ttl, attempt, False)] * 7


@VERSIONS
@pytest.mark.parametrize("quoted_bytes", [8, 24])
def test_wrong_checksum_is_forged(version: int, quoted_bytes: int) -> None:
    table = make_table(version)
    probe = bytearray(table.packet(begin(table, version), 1, 0))
    probe[quotes.IP_HEADER_BYTES[version] + 3] ^= 1

    forged = quotes.error(version, bytes(probe), quoted_bytes=quoted_bytes)

    assert table.match(forged) == trace.FORGED


@VERSIONS
@pytest.mark.parametrize("position", range(8, 16))
def test_wrong_cookie_is_forged(version: int, position: int) -> None:
    table = make_table(version)
    probe = bytearray(table.packet(begin(table, version), 1, 0))
    probe[quotes.IP_HEADER_BYTES[version] + position] ^= 0x80

    assert table.match(quotes.error(version, bytes(probe))) == trace.FORGED
    assert table.match(quotes.echo_reply(version, bytes(probe))) == trace.FORGED


@VERSIONS
def test_other_destination_needs_the_cookie(version: int) -> None:
    table = make_table(version)
    handle = begin(table, version)
    probe = bytearray(table.packet(handle, 1, 0))
    probe[quotes.IP_HEADER_BYTES[version] - 1] ^= 1

    assert table.match(quotes.error(version, bytes(probe), quoted_bytes=8)) == trace.FORGED
    assert table.match(quotes.error(version, bytes(probe))) == (handle, 1, 0, True)


@VERSIONS
def test_other_source_is_a_translation(version: int) -> None:
    table = make_table(version)
    handle = begin(table, version)
    probe = bytearray(table.packet(handle, 1, 0))
    source_end = quotes.IP_HEADER_BYTES[version] - len(SOURCE[version]) - 1
    probe[source_end] ^= 1

    found = table.match(quotes.error(version, bytes(probe), quoted_bytes=8))

    assert found == (handle, 1, 0, True)


@VERSIONS
def test_probe_that_was_not_sent_is_foreign(version: int) -> None:
    table, twin = make_table(version), make_table(version)
    begin(table, version)
    probe = twin.packet(begin(twin, version), 3, 1)

    assert table.match(quotes.error(version, probe)) == trace.FOREIGN


@VERSIONS
def test_ended_trace_has_no_answers_and_its_slot_no_old_ones(version: int) -> None:
    table = make_table(version, traces_max=1)
    old = begin(table, version)
    probe = table.packet(old, 1, 0)
    table.end(old)

    assert table.match(quotes.error(version, probe, quoted_bytes=8)) == trace.FOREIGN
    new = begin(table, version)
    table.packet(new, 1, 0)
    assert table.match(quotes.error(version, probe, quoted_bytes=8)) == trace.FOREIGN
    with pytest.raises(ValueError, match="not live"):
        table.end(old)


@VERSIONS
def test_slot_that_wrapped_all_generations_is_told_by_the_cookie(version: int) -> None:
    table = make_table(version, traces_max=1)
    old = begin(table, version)
    probe = table.packet(old, 1, 0)
    for _ in range(16):
        table.end(old)
        old = begin(table, version)
        table.packet(old, 1, 0)

    assert table.match(quotes.error(version, probe)) == trace.FORGED
    assert table.match(quotes.echo_reply(version, probe)) == trace.FORGED


@VERSIONS
def test_limit_of_traces_is_none_and_the_oldest_slot_is_reused_first(version: int) -> None:
    table = make_table(version, traces_max=3)
    handles = [begin(table, version) for _ in range(3)]

    assert table.begin(SOURCE[version], DESTINATION[version]) is None
    table.end(handles[1])
    table.end(handles[0])
    assert begin(table, version) & 0xFFFF == handles[1] & 0xFFFF


def test_all_65536_slots_are_told_apart() -> None:
    table = trace.TraceTable(4, SECRET, traces_max=65536, ident_base=4711)
    handles = [begin(table, 4, last_ttl=1, attempts=1) for _ in range(65536)]

    for handle in (handles[0], handles[1], handles[65534], handles[65535]):
        answer = quotes.error(4, table.packet(handle, 1, 0))
        assert table.match(answer) == (handle, 1, 0, False)


@VERSIONS
@given(data=st.data())
def test_damaged_answer_is_never_taken_for_another_probe(version: int, data: st.DataObject) -> None:
    table = make_table(version)
    sent = {}
    for _ in range(3):
        handle = begin(table, version)
        for ttl in range(1, 6):
            sent[handle, ttl] = table.packet(handle, ttl, 0)
    (handle, ttl), probe = data.draw(st.sampled_from(sorted(sent.items())))
    make = data.draw(st.sampled_from([quotes.error, quotes.echo_reply]))
    message = bytearray(make(version, probe))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))

    found = table.match(bytes(message))

    assert isinstance(found, int) or found[:3] == (handle, ttl, 0)


# ── any bytes whatever ──


def check_against_oracle(version: int, packet: bytes) -> None:
    expected = quotes.read(version, packet)
    found = trace.parse(version, packet)
    if expected is None:
        assert isinstance(found, int)
        assert found < 0
    else:
        assert found == dataclasses.astuple(expected)


@VERSIONS
@given(packet=st.binary(max_size=200))
@example(b"")
@example(b"\x45")
def test_garbage_reads_as_the_oracle_reads_it(version: int, packet: bytes) -> None:
    check_against_oracle(version, packet)
    assert isinstance(make_table(version).match(packet), int)


@VERSIONS
@given(data=st.data())
def test_damaged_answers_read_as_the_oracle_reads_them(version: int, data: st.DataObject) -> None:
    table = make_table(version)
    probe = table.packet(begin(table, version), data.draw(st.integers(1, 30)), 0)
    make = data.draw(st.sampled_from([quotes.error, quotes.echo_reply, quotes.with_extensions]))
    message = bytearray(make(version, probe))
    start = 20 if version == 4 else 0
    for _ in range(data.draw(st.integers(0, 6))):
        message[data.draw(st.integers(start, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(message[: data.draw(st.integers(start, len(message)))])

    check_against_oracle(version, cut)
    if version == 4:  # with a right checksum, so that what is inside is looked at
        check_against_oracle(4, quotes.receive(4, cut[start:].ljust(4, b"\0")))


@given(
    chain=st.lists(st.sampled_from([0, 43, 44, 60, 135]), max_size=10),
    lengths=st.lists(st.integers(0, 3), min_size=10, max_size=10),
)
def test_quoted_extension_headers_are_skipped(chain: list[int], lengths: list[int]) -> None:
    table = make_table(6)
    handle = begin(table, 6)
    probe = table.packet(handle, 1, 0)
    kinds = [*chain, 58]
    headers = b""
    for position, kind in enumerate(chain):
        size = 8 if kind == 44 else (lengths[position] + 1) * 8
        length = 0 if kind == 44 else lengths[position]
        headers += bytes([kinds[position + 1], length]).ljust(size, b"\0")
    answer = quotes.error(6, probe[:6] + bytes([kinds[0]]) + probe[7:40] + headers + probe[40:])

    check_against_oracle(6, answer)
    assert len(chain) > 8 or table.match(answer) == (handle, 1, 0, False)


@VERSIONS
def test_every_prefix_of_an_answer_reads_as_the_oracle_reads_it(version: int) -> None:
    table = make_table(version)
    probe = table.packet(begin(table, version), 1, 0)
    for whole in (quotes.error(version, probe), quotes.with_extensions(version, probe)):
        for length in range(len(whole) + 1):
            check_against_oracle(version, whole[:length])


# ── when it came ──

OFFSET_NS = 1_700_000_000_000_000_000


@pytest.mark.parametrize(
    ("stamp_ns", "expected"),
    [
        (OFFSET_NS + 5_000_000, (5_000_000, True)),
        (OFFSET_NS + 999_000, (1_000_000, True)),  # interpolation: never before the send
        (0, (9_000_000, False)),
        (OFFSET_NS - 3_600_000_000_000, (9_000_000, False)),  # the wall clock was set back
        (OFFSET_NS + 3_600_000_000_000, (9_000_000, False)),  # or forward
        (-1, (9_000_000, False)),
        (2**63 - 1, (9_000_000, False)),
    ],
)
def test_stamp_is_believed_only_between_send_and_receive(
    stamp_ns: int, expected: tuple[int, bool]
) -> None:
    assert trace.settle(stamp_ns, OFFSET_NS, 1_000_000, 9_000_000) == expected


@given(
    stamp_ns=st.integers(0, 2**62),
    tx_ns=st.integers(0, 2**62),
    wait_ns=st.integers(0, 10**12),
)
def test_rtt_is_never_negative(stamp_ns: int, tx_ns: int, wait_ns: int) -> None:
    rx_ns, is_kernel = trace.settle(stamp_ns, OFFSET_NS, tx_ns, tx_ns + wait_ns)

    assert rx_ns >= tx_ns
    assert is_kernel or rx_ns == tx_ns + wait_ns


# ── arguments ──


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"first_ttl": 0}, "first_ttl"),
        ({"first_ttl": 9, "last_ttl": 8}, "last_ttl"),
        ({"last_ttl": 256}, "last_ttl"),
        ({"attempts": 0}, "attempts"),
        ({"attempts": 17}, "attempts"),
    ],
)
def test_steps_out_of_range_are_refused(kwargs: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        make_table(4).begin(SOURCE[4], DESTINATION[4], **kwargs)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        trace.TraceTable(4, b"short")
    with pytest.raises(ValueError, match="version must be 4 or 6"):
        trace.TraceTable(5, SECRET)
    with pytest.raises(ValueError, match="traces_max must be 1 to 65536"):
        trace.TraceTable(4, SECRET, traces_max=65537)
    with pytest.raises(ValueError, match="address must be 4 bytes"):
        make_table(4).begin(SOURCE[6], DESTINATION[6])
    table = make_table(4)
    handle = begin(table, 4)
    with pytest.raises(ValueError, match="no probe TTL 31"):
        table.packet(handle, 31, 0)
    with pytest.raises(ValueError, match="no probe TTL 1 attempt -1"):
        table.packet(handle, 1, -1)
    with pytest.raises(ValueError, match="version must be"):
        trace.parse(7, b"")
    with pytest.raises(ValueError, match="family must be AF_INET"):
        trace.TraceSocket(0)
    with pytest.raises(OverflowError):
        trace.TraceTable(4, SECRET, ident_base=65536)
