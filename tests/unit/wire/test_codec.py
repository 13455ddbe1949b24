"""Typed decoding of requests and answers."""

import contextlib
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, SystemClock
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import HeartbeatRequest, RegisterRequest
from netsonde.wire import DecodeError, decode, decode_answer, encode, fragment, parse
from netsonde.wire.codec import is_too_deep


def refusal(body: bytes, **options: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(HeartbeatRequest, body, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", ErrorCode.MALFORMED_JSON),
        (b"{", ErrorCode.MALFORMED_JSON),
        (b"<html>", ErrorCode.MALFORMED_JSON),
        (b'{"agent_id": 1', ErrorCode.MALFORMED_JSON),
        (b'{"agent_id": NaN}', ErrorCode.MALFORMED_JSON),
        (b'{"agent_id": 1, "health": ' + b"[" * 40 + b"]" * 40 + b"}", ErrorCode.MALFORMED_JSON),
        (b"{}", ErrorCode.VALIDATION),
        (b"[]", ErrorCode.VALIDATION),
        (b'{"agent_id": "1"}', ErrorCode.VALIDATION),
        (b'{"agent_id": 1.5}', ErrorCode.VALIDATION),
    ],
)
def test_bad_bodies_are_refused_with_their_code(body: bytes, code: ErrorCode) -> None:
    assert refusal(body).code == code


def test_a_body_over_the_limit_is_refused_unread() -> None:
    assert refusal(b"x" * 101, max_bytes=100).code == ErrorCode.TOO_LARGE


def test_violations_name_the_path() -> None:
    assert refusal(b'{"agent_id": "1"}').violations == (
        ("$.agent_id", "Expected `int`, got `str`"),
    )


def test_unknown_fields_are_ignored_unless_strict() -> None:
    body = b'{"agent_id": 7, "novel": {"x": 1}}'

    assert decode(HeartbeatRequest, body).agent_id == 7
    assert refusal(body, strict=True).violations[0][0] == "$.novel"


def test_ids_above_2_63_stay_exact() -> None:
    body = b'{"agent_id": 18446744073709551615}'

    assert decode(HeartbeatRequest, body).agent_id == 2**64 - 1
    assert parse(b"[18446744073709551616]") == [2**64]


@given(st.binary())
def test_garbage_is_refused_and_nothing_else(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        decode(RegisterRequest, body)
    with contextlib.suppress(DecodeError):
        decode_answer(RegisterRequest, body)


def nested(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nested, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nested, value), default=0)
    return 0


json_values = st.recursive(
    st.none() | st.booleans() | st.text('[]{}"\\a,:'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"a'), inner, max_size=3)
    ),
)


@given(json_values, st.integers(0, 6))
def test_depth_is_counted_outside_strings(value: object, limit: int) -> None:
    assert is_too_deep(encode(value), limit) == (nested(value) > limit)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 40 + b'"' + b'\\"' * 500_000,  # an unclosed string, full of quotes
        b"[" * 1_000_000,
        (b"[" * 31 + b"]" * 31) * 15_000,
    ],
    ids=["quotes", "open", "nests"],
)
def test_no_body_holds_the_loop(body: bytes) -> None:
    started_ns = SystemClock().monotonic_ns()
    for limit in (30, 400):
        is_too_deep(body, limit)
    # Linear work takes a tenth of a second; what looks again at every quote takes hours.
    assert SystemClock().monotonic_ns() - started_ns < 2 * NS_PER_S


@pytest.mark.parametrize("end", [b'"\\', b'"a\\"', b'"[', b'["[', b'"\\\\"['])
def test_a_text_that_breaks_off_is_as_deep_as_it_came(end: bytes) -> None:
    assert is_too_deep(b"[[[" + end, 2)


def test_fragments_are_embedded_as_they_are() -> None:
    assert encode({"a": fragment(b'{"b":  1}'), "c": (1, None)}) == b'{"a":{"b":  1},"c":[1,null]}'


def test_structs_leave_out_defaults() -> None:
    assert encode(RegisterRequest(hostname="h")) == b'{"hostname":"h"}'


def test_what_has_no_json_form_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        encode({"a": object()})


def test_an_answer_that_is_not_json_says_how_it_starts() -> None:
    with pytest.raises(DecodeError, match="<html>"):
        decode_answer(RegisterRequest, b"<html>proxy</html>")


class Inner(msgspec.Struct):
    """Something in something else."""

    x: int = 0


class Outer(msgspec.Struct):
    """What holds others in every way that a body does."""

    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    some: Annotated[list[Inner], msgspec.Meta(max_length=3)] | None = None
    named: dict[str, Inner] = {}
    free: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"y":1}', "$.y"),
        (b'{"maybe":{"y":1}}', "$.maybe.y"),
        (b'{"many":[{"x":1},{"y":1}]}', "$.many[1].y"),
        (b'{"some":[{"y":1}]}', "$.some[0].y"),
        (b'{"named":{"a":{"y":1}}}', "$.named.a.y"),
    ],
)
def test_an_unknown_field_is_found_wherever_it_is(body: bytes, path: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(Outer, body, strict=True)

    assert [where for where, _ in caught.value.violations] == [path]
    decode(Outer, body)


def test_what_is_free_may_hold_anything() -> None:
    decode(Outer, b'{"free":{"y":{"z":[{"a":1}]}},"maybe":null,"some":null}', strict=True)
