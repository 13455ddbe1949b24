"""Bytes to typed values and back: the only place that decodes or encodes JSON.

Decoding is typed and validates in one pass (msgspec); what we write is orjson's, around fragments
that hold only bytes our own encoder made or our own decoder validated.
"""

import re
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin

import msgspec
import orjson

from netsonde.errors import ErrorCode, NetsondeError, RequestError
from netsonde.wire.limits import BODY_MAX_BYTES, JSON_DEPTH_MAX

T = TypeVar("T")

# An unclosed string ends with the text, and nothing is tried twice: a megabyte of quotes that were
# looked at again from each of them would hold the loop for hours.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS_ONLY = bytes(set(range(256)) - set(b"[]{}"))
_ROUND_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_STEPS = tuple(1 if byte == ord("[") else -1 for byte in range(256))
FLAT_PASSES = 8  # real bodies are flat after so many; what is not is counted bracket by bracket
_decoders: dict[Any, "msgspec.json.Decoder[Any]"] = {}
_AT = re.compile(r"^(?P<message>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)


# What decoders raise for bytes that are not what they should be.
UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class DecodeError(NetsondeError):
    """The other side's answer is not what the contract says."""


def encode(value: Any) -> bytes:
    """Encode Structs, plain values and fragments as compact JSON.

    Raises:
        TypeError: value holds something JSON has no form for.
    """
    return orjson.dumps(value, default=_plain)


def fragment(body: bytes) -> Any:
    """Embed validated JSON bytes as they are in what `encode` writes."""
    return orjson.Fragment(body)


def parse(body: bytes) -> Any:
    """Decode JSON into plain values; integers of any size stay integers.

    Raises:
        DecodeError: body is not JSON.
    """
    try:
        return msgspec.json.decode(body)
    except UNREADABLE as error:
        raise DecodeError(f"not JSON: {error}") from error


def decode(
    type_: type[T],
    body: bytes,
    *,
    max_bytes: int = BODY_MAX_BYTES,
    depth_max: int | None = JSON_DEPTH_MAX,
    strict: bool = False,
) -> T:
    """Decode and validate a request's body.

    strict makes unknown fields an error, as the operator API does. A depth_max of None leaves it to
    the decoder, which gives up some hundred levels deep: for what is looked at again part by part.

    Raises:
        RequestError: ERR_TOO_LARGE, ERR_MALFORMED_JSON, or ERR_VALIDATION with the path.
    """
    if len(body) > max_bytes:
        raise RequestError(
            ErrorCode.TOO_LARGE, f"the body has {len(body)} bytes, {max_bytes} are allowed"
        )
    if depth_max is not None and is_too_deep(body, depth_max):
        raise RequestError(
            ErrorCode.MALFORMED_JSON, f"the JSON is nested deeper than {depth_max} levels"
        )
    try:
        value = decoder(type_).decode(body)
    except msgspec.ValidationError as error:
        raise validation_error(error) from error
    except UNREADABLE as error:
        raise RequestError(ErrorCode.MALFORMED_JSON, f"the body is not JSON: {error}") from error
    if strict:
        _refuse_unknown(_shape_of(type_), parse(body), "$")
    return value


def array_items(body: bytes, *, max_bytes: int) -> list[bytes]:
    """Return the items of a JSON array as they stand in it, whatever they are.

    Raises:
        RequestError: ERR_TOO_LARGE, ERR_MALFORMED_JSON, or ERR_VALIDATION: it is no array.
    """
    return [bytes(item) for item in decode(list[msgspec.Raw], body, max_bytes=max_bytes)]


def compact(item: bytes) -> bytes:
    """Write JSON on one line.

    Raises:
        DecodeError: item is not JSON.
    """
    try:
        line = msgspec.json.format(item, indent=-1)
    except UNREADABLE as error:
        raise DecodeError(f"not JSON: {error}") from error
    if b"\n" in line:
        raise DecodeError("not JSON: a line break in a string")
    return line


def decode_answer(type_: type[T], body: bytes) -> T:
    """Decode and validate a control plane's answer; unknown fields are ignored.

    Raises:
        DecodeError: body is not JSON or not of this type.
    """
    try:
        return decoder(type_).decode(body)
    except UNREADABLE as error:
        raise DecodeError(f"{error} (the body starts {body[:60]!r})") from error


def decoder(type_: type[T]) -> "msgspec.json.Decoder[T]":
    """Return the one decoder of a type: making one costs more than using it."""
    known = _decoders.get(type_)
    if known is None:
        known = _decoders[type_] = msgspec.json.Decoder(type_)
    return known


def validation_error(error: msgspec.ValidationError) -> RequestError:
    """Turn msgspec's message into ERR_VALIDATION with `(path, message)`."""
    match = _AT.match(str(error))
    path, message = (match["path"], match["message"]) if match else ("$", str(error))
    return RequestError(ErrorCode.VALIDATION, f"{path}: {message}", violations=((path, message),))


def is_too_deep(body: bytes, limit: int = JSON_DEPTH_MAX) -> bool:
    """Whether JSON nests arrays and objects deeper than limit.

    Each of the first passes over the bare brackets removes the innermost level, so that flat bodies
    are done by bytes.replace and not bracket by bracket. The work is linear in the body.
    """
    if body.count(b"[") + body.count(b"{") <= limit:  # too few to nest that deep
        return False
    brackets = _STRING.sub(b"", body).translate(_ROUND_TO_SQUARE, _BRACKETS_ONLY)
    removed = 0
    while brackets and removed < min(limit, FLAT_PASSES):
        brackets = brackets.replace(b"[]", b"")
        removed += 1
    # A text that closes what it did not open ends there for every reader.
    return any(map((limit - removed).__lt__, accumulate(map(_STEPS.__getitem__, brackets))))


class _Shape(NamedTuple):
    """What fields an object may have, and what is in a value that is an array or a map."""

    struct: type[msgspec.Struct] | None = None
    item: "_Shape | None" = None


def _shape_of(type_: Any) -> _Shape:
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _shape_of(inner[0])
    if origin in (Union, UnionType):
        shapes = [_shape_of(each) for each in inner]
        structs = [shape.struct for shape in shapes if shape.struct is not None]
        items = [shape.item for shape in shapes if shape.item is not None]
        return _Shape(structs[0] if len(structs) == 1 else None, items[0] if items else None)
    if origin in (tuple, list, dict):
        return _Shape(item=_shape_of(inner[1 if origin is dict else 0]))
    is_struct = isinstance(type_, type) and issubclass(type_, msgspec.Struct)
    return _Shape(type_ if is_struct else None)


@cache
def _fields_of(struct: type[msgspec.Struct]) -> Mapping[str, _Shape]:
    """Return what a Struct's fields are by their names: finding that takes longer than JSON."""
    return {field.encode_name: _shape_of(field.type) for field in msgspec.structs.fields(struct)}


def _refuse_unknown(shape: _Shape, value: Any, path: str) -> None:
    if shape.item is not None and isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_unknown(shape.item, item, f"{path}[{place}]")
    if not isinstance(value, Mapping):
        return
    if shape.struct is None:
        for name, item in value.items() if shape.item is not None else ():
            _refuse_unknown(cast("_Shape", shape.item), item, f"{path}.{name}")
        return
    fields = _fields_of(shape.struct)
    tag = shape.struct.__struct_config__.tag_field
    for name, item in value.items():
        if name == tag:
            continue
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            message = f"unknown field; known are {known}"
            raise RequestError(
                ErrorCode.VALIDATION,
                f"{path}.{name}: {message}",
                violations=((f"{path}.{name}", message),),
            )
        _refuse_unknown(fields[name], item, f"{path}.{name}")


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return cast("dict[str, Any]", msgspec.to_builtins(value, builtin_types=(orjson.Fragment,)))
    if isinstance(value, msgspec.Raw):
        return orjson.Fragment(bytes(value))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
