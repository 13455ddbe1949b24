import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import ConfigError, TargetDeniedError
from netsonde.policy import RULES_MAX, TargetPolicy, embedded

AGENT = TargetPolicy()
PERSON = TargetPolicy.person()

# Where the registry (or a cloud) knows better than the standard library of some Python version.
KNOWN_BETTER = [
    ipaddress.ip_network(each)
    for each in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "168.63.129.16/32",
        "100.64.0.0/10",
        "224.0.0.0/4",
        "2001:1::/126",
        "2001:3::/32",
        "2001:4:112::/48",
    )
]
NEVER = ["0.0.0.0", "255.255.255.255", "224.0.0.1", "239.255.255.250", "::", "ff02::1"]


def allows(policy: TargetPolicy, address: object) -> bool:
    try:
        policy.check(str(address))
    except TargetDeniedError:
        return False
    return True


def refusal(policy: TargetPolicy, address: str) -> str:
    with pytest.raises(TargetDeniedError) as caught:
        policy.check(address)
    return str(caught.value)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "192.0.0.9"])
def test_an_agent_probes_public_addresses(address: str) -> None:
    AGENT.check(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "::1",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.1.2.3",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "2001:db8::1",
        "3fff::1",
        "100::1",
        "4000::1",
        "fec0::1",
        "::8.8.8.8",
        *NEVER,
    ],
)
def test_an_agent_probes_nothing_else_by_default(address: str) -> None:
    assert not allows(AGENT, address)


@pytest.mark.parametrize("address", NEVER)
def test_no_rule_opens_a_crowd(address: str) -> None:
    open_wide = TargetPolicy(("public", "private", "0.0.0.0/0", "::/0", "224.0.0.0/4", "ff00::/8"))

    assert "no rule allows that" in refusal(open_wide, address)
    assert not allows(PERSON, address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1", "192.0.2.1"],
)
def test_a_person_may_probe_what_an_agent_may_not(address: str) -> None:
    PERSON.check(address)


def test_private_opens_private_shared_and_unique_local_and_no_more() -> None:
    policy = TargetPolicy(("private",))

    for address in ("10.1.2.3", "100.64.1.1", "fd12::1"):
        policy.check(address)
    for address in ("8.8.8.8", "127.0.0.1", "169.254.0.1", "100.100.100.200", "fd00:ec2::254"):
        assert not allows(policy, address)


def test_the_refusal_names_the_line_that_opens_it() -> None:
    assert refusal(AGENT, "10.1.2.3") == (
        "10.1.2.3 is private (RFC 1918); this line would allow it: "
        'targets = ["public", "10.0.0.0/8"]'
    )
    assert 'targets = ["private", "public"]' in refusal(TargetPolicy(("private",)), "8.8.8.8")
    assert '"127.0.0.0/8"]' in refusal(AGENT, "127.0.0.1")
    assert '"169.254.169.254/32"]' in refusal(AGENT, "169.254.169.254")


@given(st.ip_addresses())
def test_following_the_refusal_opens_the_address(
    address: IPv4Address | IPv6Address,
) -> None:
    policy = AGENT
    for _ in range(5):  # an address may carry up to four others, each with a rule of its own
        if allows(policy, address):
            return
        told = refusal(policy, str(address))
        _, found, line = told.partition("targets = ")
        if not found:
            assert "no rule allows that" in told
            return
        policy = TargetPolicy([rule.strip('" ') for rule in line.strip("[]").split(",")])
    pytest.fail(f"following the refusals never opened {address}")


def test_own_and_control_plane_need_a_prefix_of_their_own() -> None:
    facts = {
        "own": ["203.0.114.7", "fe80::7%eth0"],
        "control_plane": ["198.52.1.1", "::ffff:9.9.9.9"],
    }
    policy = TargetPolicy(("public", "private"), **facts)

    assert "own addresses" in refusal(policy, "203.0.114.7")
    assert "own addresses" in refusal(policy, "::ffff:203.0.114.7")
    assert "control plane" in refusal(policy, "198.52.1.1")
    assert "control plane" in refusal(policy, "9.9.9.9")
    assert allows(TargetPolicy(("203.0.114.0/24",), **facts), "203.0.114.7")
    assert allows(TargetPolicy(("198.52.1.1",), **facts), "198.52.1.1")


@pytest.mark.parametrize(
    "address", ["2002:808:808::1", "2001:0:808:808::f7f7:f7f7", "64:ff9b::808:808"]
)
def test_own_and_control_plane_may_carry_another_address(address: str) -> None:
    assert allows(TargetPolicy(), address)
    assert "own addresses" in refusal(TargetPolicy(own=[address]), address)
    assert "control plane" in refusal(TargetPolicy(control_plane=[address]), address)


def test_deny_always_wins() -> None:
    policy = TargetPolicy(
        ("public", "10.0.0.0/8", "10.1.0.5/32"), deny=("10.1.0.0/16", "8.8.8.0/24", "64:ff9b::/96")
    )

    assert "10.1.0.0/16" in refusal(policy, "10.1.0.5")
    assert "this line" not in refusal(policy, "8.8.8.8")
    assert not allows(policy, "::ffff:8.8.8.8")
    assert not allows(policy, "64:ff9b::1.1.1.1")
    assert not allows(TargetPolicy(deny=("::ffff:8.8.8.0/120",)), "8.8.8.8")
    assert allows(policy, "10.2.0.5")
    assert not allows(TargetPolicy(deny=("0.0.0.0/0",)), "1.1.1.1")


def test_a_wide_prefix_does_not_open_a_metadata_service_but_its_own_does() -> None:
    assert not allows(TargetPolicy(("169.254.0.0/16",)), "169.254.169.254")
    assert not allows(TargetPolicy(("fd00::/8",)), "fd00:ec2::254")
    assert allows(TargetPolicy(("169.254.169.254/32",)), "169.254.169.254")
    assert allows(TargetPolicy(("169.254.0.0/16",)), "169.254.1.1")


@pytest.mark.parametrize(
    ("setting", "rule", "words"),
    [
        ("allow", "10.0.0.0/33", "10.0.0.0/33"),
        ("allow", "10.0.0.1/8", "host bits set; write 10.0.0.0/8"),
        ("allow", "everything", '"public", "private" or a prefix'),
        ("allow", "", "is not"),
        ("allow", "64:ff9b::/96", "write the IPv4 prefix"),
        ("allow", "::ffff:10.0.0.0/104", "write the IPv4 prefix"),
        ("deny", "public", 'deny: "public" is not an address or a prefix'),
        ("own", "eth0", "own addresses"),
        ("control_plane", "cp.example.net", "control plane addresses"),
    ],
)
def test_a_bad_rule_is_named(setting: str, rule: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TargetPolicy(**{setting: (rule,)})

    assert words in str(caught.value)


def test_one_word_is_a_rule_too() -> None:
    assert allows(TargetPolicy("private"), "10.0.0.1")
    assert not allows(TargetPolicy(()), "8.8.8.8")


@pytest.mark.parametrize("text", ["", "example.net", "127.1", "0x7f000001", "1.2.3.4:80", "[::1]"])
def test_what_is_no_address_is_denied(text: str) -> None:
    assert "is not an IP address" in refusal(PERSON, text)


def test_the_version_depends_on_the_rules_only() -> None:
    base = TargetPolicy(("public", "10.0.0.0/8"), deny=("8.8.8.8",))

    same = TargetPolicy(("10.0.0.0/8", "public"), deny=("8.8.8.8",), own=("10.0.0.1",))
    assert base.version == same.version
    assert base.version != TargetPolicy(("public", "10.0.0.0/8")).version
    assert TargetPolicy(("public",)).version != TargetPolicy((), deny=("10.0.0.0/8",)).version
    assert len(base.version) == 12
    assert TargetPolicy().version == "af1eb265d702"  # stable across releases and hosts


@given(st.ip_addresses(v=4))
def test_every_ipv4_verdict_agrees_with_the_standard_library(address: IPv4Address) -> None:
    if any(address in network for network in KNOWN_BETTER):
        return

    assert allows(AGENT, address) == address.is_global


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_that_is_not_global_passes(address: IPv6Address) -> None:
    if embedded(address) or any(address in network for network in KNOWN_BETTER):
        return

    assert not allows(AGENT, address) or address.is_global


def test_every_ipv4_range_edge_agrees_with_the_standard_library() -> None:
    for first_octets in range(1 << 16):
        for low in (0, 0xFFFF):
            address = IPv4Address(first_octets << 16 | low)
            if any(address in network for network in KNOWN_BETTER):
                continue
            assert allows(AGENT, address) == address.is_global, address


V4 = st.ip_addresses(v=4).map(int)


@given(V4, st.integers(0, 2**64 - 1), st.sampled_from([AGENT, PERSON, TargetPolicy("private")]))
def test_embedded_forms_are_judged_by_what_they_carry(
    v4: int, rest: int, policy: TargetPolicy
) -> None:
    inner = allows(policy, IPv4Address(v4))

    assert allows(policy, IPv6Address(0xFFFF << 32 | v4)) == inner
    assert allows(policy, IPv6Address(0x64_FF9B << 96 | v4)) == inner
    assert allows(policy, IPv6Address(0x2002 << 112 | v4 << 80 | rest)) == inner


@given(V4, V4, st.integers(0, 2**32 - 1))
def test_teredo_is_judged_by_its_server_and_its_client(server: int, client: int, rest: int) -> None:
    address = IPv6Address(0x2001_0000 << 96 | server << 64 | rest << 32 | client ^ 0xFFFF_FFFF)

    both = allows(AGENT, IPv4Address(server)) and allows(AGENT, IPv4Address(client))
    assert allows(AGENT, address) == both


@given(V4, st.sampled_from([48, 56, 64, 96]))
def test_local_nat64_cannot_hide_a_denied_address(v4: int, prefix_length: int) -> None:
    prefix = 0x64_FF9B_0001 << 80
    if prefix_length == 96:
        address = prefix | v4
    else:  # RFC 6052 2.2: bits 64 to 71 stay zero
        high_bits = 64 - prefix_length
        high = v4 >> (32 - high_bits)
        low = v4 & (1 << 32 - high_bits) - 1
        address = prefix | high << 64 | low << (56 - (32 - high_bits))

    assert IPv4Address(v4) in embedded(IPv6Address(address)) or v4 >> 24 == 0
    if v4 >> 24 and not allows(AGENT, IPv4Address(v4)):
        assert not allows(AGENT, IPv6Address(address))


def test_local_nat64_reaches_public_addresses() -> None:
    assert allows(AGENT, "64:ff9b:1::808:808")
    assert not allows(AGENT, "64:ff9b:1:7f00:0:100:808:808")
    assert not allows(AGENT, "64:ff9b:1::")
    assert "carries 10.0.0.1, which is private" in refusal(AGENT, "64:ff9b::a00:1")


def test_more_can_be_denied_at_work_and_never_less() -> None:
    policy = TargetPolicy(deny=("192.0.43.0/24",))
    version = policy.version
    policy.prepare_deny(("8.8.8.0/24", "2001:4860::/32"))
    assert allows(policy, "8.8.8.8")
    policy.prepare_deny(("8.8.8.0/24", "2001:4860::/32"))()
    for address in ("8.8.8.8", "2001:4860::1", "192.0.43.1", "::ffff:8.8.8.8"):
        assert not allows(policy, address)
    assert (
        policy.version
        == TargetPolicy(deny=("192.0.43.0/24", "8.8.8.0/24", "2001:4860::/32")).version
    )
    policy.prepare_deny(())()
    assert allows(policy, "8.8.8.8")
    assert not allows(policy, "192.0.43.1")
    assert policy.version == version


def test_a_host_and_a_configuration_deny_no_more_together_than_is_allowed() -> None:
    own = [f"20.{number >> 8}.{number & 255}.0/24" for number in range(10)]
    policy = TargetPolicy(deny=own)
    with pytest.raises(ConfigError, match="deny: 100001 rules"):
        policy.prepare_deny(["11.0.0.0/24"] * (RULES_MAX - 9))


def test_what_is_no_prefix_denies_nothing() -> None:
    policy = TargetPolicy()
    with pytest.raises(ConfigError, match="deny"):
        policy.prepare_deny(("8.8.8.0/24", "nonsense"))
    assert allows(policy, "8.8.8.8")
