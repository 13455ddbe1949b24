"""What is fuzzed, what must be covered, and the bugs that must be found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A harness, tests/fuzz/<name>.pyx."""

    name: str
    share: int  # of all inputs, in parts of a thousand
    max_bytes: int  # of an input


TARGETS = (
    Target("packet", 374, 320),
    Target("probequote", 220, 320),
    Target("extensions", 150, 320),
    Target("echo_match", 120, 300),
    Target("trace_match", 60, 240),
    Target("inflight", 25, 200),
    Target("schedule", 10, 160),
    Target("budget", 20, 160),
    Target("echo_turn", 20, 240),
    Target("memory", 1, 16),
)

# The cores that the targets answer for, and what no fuzzer reaches in them: functions that ask the
# kernel, or that start and stop with the sockets. Whatever else a core defines must be covered.
CORES: dict[str, tuple[str, ...]] = {
    "packet": (),
    "probequote": (),
    "extensions": (),
    "cookie": (),
    "inflight": (),
    "schedule": (),
    "budget": (),
    "ring": ("atomic_load", "atomic_store", "atomic_swap"),
    "stamps": (
        "clock_ns", "monotonic_ns", "wall_sample", "step_timer_arm", "step_timer_open",
        "step_timer_fired", "loopback_stamp", "await_stamping",
    ),
    "echostate": (),
    "echostamp": ("stamps_ask",),
    "echosend": ("echo_hear_errors", "echo_clear_error", "same_socket", "echo_send_batch"),
    "echogate": (),
    "echomatch": (),
    "echoreceive": (
        "echo_read_queue", "echo_read", "echo_receive_errors", "echo_await_batch",
        "echo_receive_batch", "echo_receive",
    ),
    "echo": ("echo_transmit", "echo_take_steps", "echo_turn"),
    "tracestate": (),
    "tracepath": (),
    "traceprobe": (),
    "tracesend": (),
    "tracerun": (),
    "tracematch": (),
    "tracereceive": ("trace_receive_from", "trace_receive"),
}  # fmt: skip


@dataclass(frozen=True)
class Plant:
    """A bug to put into a copy of the cores; its target must find it within `bound` inputs."""

    name: str
    target: str
    core: str
    before: str
    after: str
    bound: int


PLANTS = (
    Plant(
        "a quoted header longer than the quote", "probequote", "packet",
        "if header < IPV4_HEADER_BYTES or header > n:", "if header < IPV4_HEADER_BYTES:",
        2_000_000,
    ),
    Plant(
        "a transport header cut short", "probequote", "probequote",
        "out.is_cut = ip.body_bytes < QUOTE_TRANSPORT_BYTES",
        "out.is_cut = ip.body_bytes + 1 < QUOTE_TRANSPORT_BYTES",
        2_000_000,
    ),
    Plant(
        "padding taken for payload", "probequote", "probequote",
        "return claimed if claimed < ip.body_bytes else ip.body_bytes", "return ip.body_bytes",
        2_000_000,
    ),
    Plant(
        "extensions taken for payload", "probequote", "probequote",
        "quoted = n - ICMP_HEADER_BYTES - out.extension_bytes", "quoted = n - ICMP_HEADER_BYTES",
        2_000_000,
    ),
    Plant(
        "a TCP header of any length", "probequote", "probequote",
        "        if header >= QUOTE_TCP_BYTES:\n", "        if header:\n",
        2_000_000,
    ),
    Plant(
        "an object longer than its structure", "extensions", "extensions",
        " or length > n - at:", ":",
        2_000_000,
    ),
    Plant(
        "an object's header cut short", "extensions", "extensions",
        "    if n - at < EXTENSION_OBJECT_BYTES:\n        return EXTENSION_LYING\n", "",
        2_000_000,
    ),
    Plant(
        "a structure that only sums up", "extensions", "extensions",
        "            and load_be16(p + 2) != 0 and internet", "            and internet",
        2_000_000,
    ),
    Plant(
        "a checksum that is never looked at", "extensions", "extensions",
        "if load_be16(p + 2) != 0 and internet", "if load_be16(p + 2) == 0 and internet",
        2_000_000,
    ),
    Plant(
        "an extension header cut short", "packet", "packet",
        "            if at + 8 > n:\n                return PARSE_SHORT\n            step = (",
        "            step = (",
        2_000_000,
    ),
    Plant(
        "the slot behind the last", "echo_match", "echomatch",
        "if e.family != AF_INET or index >= e.slab.size:",
        "if e.family != AF_INET or index > e.slab.size:",
        2_000_000,
    ),
    Plant(
        "a cookie of 7 bytes", "echo_match", "echomatch",
        "if load_be64(icmp.payload + 8) != echo_cookie(e, icmp.payload):",
        "if load_be64(icmp.payload + 8) >> 8 != echo_cookie(e, icmp.payload) >> 8:",
        2_000_000,
    ),
    Plant(
        "any serial", "echo_match", "echomatch",
        "or e.slab.slots[index].serial != load_be32(icmp.payload + 4)):", "):",
        2_000_000,
    ),
    Plant(
        "a wrong cookie taken for none", "trace_match", "tracematch",
        "if not to_it or (has_name(q) and not is_padded(q)):", "if not to_it:",
        500_000,
    ),
    Plant(
        "an answer that is given up twice", "trace_match", "tracerun",
        "    if slot.state == SLOT_IN_FLIGHT:\n", "    if slot.state != SLOT_ANSWERED:\n",
        500_000,
    ),
    Plant(
        "an end that owes an answer", "trace_match", "tracepath",
        "for ttl in range(t.request.first_ttl, t.end_ttl + 1):\n        if t.hops",
        "for ttl in range(t.request.first_ttl, t.end_ttl):\n        if t.hops",
        500_000,
    ),
    Plant(
        "a balance without the filler", "trace_match", "traceprobe",
        "probe_pseudo_sum(trace, v4) + rest_sum", "probe_pseudo_sum(trace, v4)",
        500_000,
    ),
    Plant(
        "a bucket that stays occupied", "inflight", "inflight",
        "        if slot.next == SLOT_NIL:\n            slab.occupied",
        "        if slot.next == index:\n            slab.occupied",
        1_000_000,
    ),
    Plant(
        "the wrong child", "schedule", "schedule",
        "if child + 1 < s.count and is_before", "if child + 2 < s.count and is_before",
        1_000_000,
    ),
    Plant(
        "a wait rounded down", "budget", "budget",
        "(ahead + (1 << UNIT_SHIFT) - 1) >> UNIT_SHIFT", "ahead >> UNIT_SHIFT",
        1_000_000,
    ),
)  # fmt: skip
