import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS
from netsonde.errors import ResolveError, TargetDeniedError
from netsonde.policy import TargetPolicy
from netsonde.probe.targets import TargetResolver, endpoint, literal, socket_address


class Names:
    """A resolver's database: addresses of a name, or the error it gives."""

    def __init__(self, **answers: Sequence[str] | BaseException | None) -> None:
        self._answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, name: str, family: int) -> list[tuple[Any, ...]]:
        self.asked.append((name, family))
        answer = self._answers[name]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return [self._entry(each) for each in answer or ()]

    @staticmethod
    def _entry(address: str) -> tuple[Any, ...]:
        bare, _, scope = address.partition("%")
        if ":" in bare:
            return socket.AF_INET6, 1, 6, "", (bare, 0, 0, int(scope or 0))
        return socket.AF_INET, 1, 6, "", (bare, 0)


def agent(names: Names, *allow: str) -> TargetResolver:
    return TargetResolver(TargetPolicy(("public", *allow)), look_up=names)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
async def test_an_address_is_not_looked_up(address: str) -> None:
    names = Names()

    assert await agent(names).addresses(address) == (address,)
    assert names.asked == []


async def test_brackets_of_an_address_are_taken_off() -> None:
    assert await agent(Names()).addresses("[2606:4700::1111]", 6) == ("2606:4700::1111",)


async def test_an_address_of_the_other_family_is_a_sentence() -> None:
    with pytest.raises(ResolveError, match=r"8\.8\.8\.8 is an IPv4 address and IPv6 was asked"):
        await agent(Names()).addresses("8.8.8.8", 6)


async def test_addresses_come_once_each_in_the_resolvers_order() -> None:
    names = Names(example_net=["2606:4700::1", "8.8.8.8", "8.8.8.8", "1.1.1.1"])

    found = await agent(names).addresses("example.net")

    assert found == ("2606:4700::1", "8.8.8.8", "1.1.1.1")


@pytest.mark.parametrize(
    ("family", "asked"), [(4, socket.AF_INET), (6, socket.AF_INET6), ("any", socket.AF_UNSPEC)]
)
async def test_the_family_is_asked_for(family: Any, asked: int) -> None:
    names = Names(example_net=["8.8.8.8"])

    await agent(names).addresses("example.net", family)

    assert names.asked == [("example.net", asked)]


async def test_an_answer_is_bounded() -> None:
    names = Names(example_net=[f"8.8.{low}.8" for low in range(200)])

    assert len(await agent(names).addresses("example.net")) == 32


async def test_denied_addresses_are_left_out_and_told() -> None:
    names = Names(example_net=["10.0.0.1", "8.8.8.8", "::1"])

    found = await agent(names).resolve("example.net")

    assert found.addresses == ("8.8.8.8",)
    assert [each.split()[0] for each in found.denied] == ["10.0.0.1", "::1"]


async def test_a_name_with_denied_addresses_only_is_denied_and_named() -> None:
    names = Names(rebound_example_net=["127.0.0.1"])

    with pytest.raises(TargetDeniedError, match=r"rebound\.example\.net: 127\.0\.0\.1 is loopback"):
        await agent(names).addresses("rebound.example.net")


async def test_a_denied_address_is_named_once() -> None:
    with pytest.raises(TargetDeniedError, match=r"^127\.0\.0\.1 is loopback"):
        await agent(Names()).addresses("127.0.0.1")


async def test_numbers_that_only_a_resolver_reads_are_vetted_after_it_did() -> None:
    names = Names(**{"0x7f000001": ["127.0.0.1"], "2130706433": ["127.0.0.1"]})

    for spelling in ("0x7f000001", "2130706433"):
        with pytest.raises(TargetDeniedError):
            await agent(names).addresses(spelling)


async def test_zones_of_link_local_answers_are_kept() -> None:
    names = Names(example_net=["fe80::1%3"])

    assert await agent(names, "fe80::/10").addresses("example.net") == ("fe80::1%3",)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name does not exist"),
        (socket.gaierror(socket.EAI_NODATA, "x"), "has no address"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "temporary failure"),
        (socket.gaierror(socket.EAI_FAIL, "x"), "answered with a failure"),
        (socket.gaierror(-99, "strange"), "strange"),
        (OSError(24, "Too many open files"), "the resolver failed: Too many open files: raise"),
    ],
)
async def test_failures_are_sentences_with_the_host(error: OSError, words: str) -> None:
    with pytest.raises(ResolveError) as caught:
        await agent(Names(example_net=error)).addresses("example.net")

    assert str(caught.value).startswith("example.net: ")
    assert words in str(caught.value)


async def test_an_empty_answer_is_a_failure() -> None:
    with pytest.raises(ResolveError, match="has no address"):
        await agent(Names(example_net=[])).addresses("example.net")


async def test_a_silent_resolver_is_given_up() -> None:
    with pytest.raises(ResolveError, match=r"example\.net: .* not resolved within 0\.001 s"):
        await agent(Names(example_net=None)).resolve("example.net", timeout_ns=NS_PER_MS)


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "a b",
        "a\nb",
        "a\x00b",
        "a..b",
        ".a",
        "x" * 64 + ".net",
        "a." * 130,
        "\udcff.net",
        "\xa0",
    ],
)
async def test_what_is_no_host_name_is_never_looked_up(host: str) -> None:
    names = Names()

    with pytest.raises(ResolveError, match="is not a host name"):
        await agent(names).addresses(host)
    assert names.asked == []


async def test_a_name_of_any_length_costs_nothing() -> None:
    """Encoding takes a second of the event loop for the longest host that a URL can have."""
    with pytest.raises(ResolveError, match="longer than 253 characters") as caught:
        await agent(Names()).addresses("\ufdfa" * 8000)
    assert len(str(caught.value)) < 200


async def test_international_names_are_encoded() -> None:
    names = Names(**{"xn--bcher-kva.example": ["8.8.8.8"]})

    assert await agent(names).addresses("bücher.example") == ("8.8.8.8",)


def test_socket_addresses_resolve_nothing_but_zones() -> None:
    assert socket_address("192.0.2.1", 53) == (socket.AF_INET, ("192.0.2.1", 53))
    assert socket_address("2001:db8::1", 53) == (socket.AF_INET6, ("2001:db8::1", 53, 0, 0))
    assert socket_address("fe80::1%7", 53) == (socket.AF_INET6, ("fe80::1", 53, 0, 7))
    with pytest.raises(ResolveError, match="no interface named 'nowhere0'"):
        socket_address("fe80::1%nowhere0", 53)


@pytest.mark.parametrize("zone", ["4294967296", "9" * 200, "9" * 5000, "lo\0", "\u0664294967296"])
def test_a_zone_that_no_interface_can_have_is_a_sentence(zone: str) -> None:
    with pytest.raises(ResolveError, match="no interface named"):
        socket_address(f"fe80::1%{zone}", 53)


def test_endpoints_are_unambiguous() -> None:
    assert endpoint("192.0.2.1", 53) == "192.0.2.1:53"
    assert endpoint("2001:db8::1", 53) == "[2001:db8::1]:53"


def test_names_are_no_literals() -> None:
    assert literal("example.net") == ()
    assert literal("[example.net]") == ()
    assert literal("127.1") == ()
