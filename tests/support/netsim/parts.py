"""What scenarios are made of: tables, numbers with bounds, addresses, and faults with a place."""

from ipaddress import ip_address
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

DELAY_MAX_MS = 60_000
PAYLOAD_MAX_BYTES = 1472
ADDRESS_FIELDS = frozenset({"from4", "from6", "address4", "address6"})
CHOICE_FIELDS = frozenset({"payload", "checksum", "differs_in", "kind", "protocols"})

Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(ge=0, le=DELAY_MAX_MS)]
Copies = Annotated[int, Meta(ge=1, le=8)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Quoted = Annotated[int, Meta(ge=8, le=PAYLOAD_MAX_BYTES)] | Literal["full"]


class ScenarioError(ValueError):
    """A scenario is not valid; the message begins with the field's name."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the scenario."""


class IcmpError(Part, frozen=True):
    """An ICMP error; its default is host unreachable, from the destination itself.

    quoted: bytes after the quoted IP header, or all that RFC 1812 (576 bytes) and RFC 4443
    (1280 bytes) have room for.
    """

    type4: Byte = 3
    code4: Byte = 1
    type6: Byte = 1
    code6: Byte = 3
    from4: str | None = None
    from6: str | None = None
    quoted: Quoted = "full"


def convert(table: object, kind: type[Any], place: str) -> Any:
    """Read tables as a part; ScenarioError names the field that is wrong."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        complaint, _, where = str(error).partition(" - at `$")
        field = f"{place}{where.rstrip('`')}".lstrip(".")
        raise ScenarioError(f"{field or 'scenario'}: {complaint}") from error


def check_address(text: str, family: int, field: str) -> None:
    """Refuse what is no address of a family."""
    try:
        version = ip_address(text).version
    except ValueError as error:
        raise ScenarioError(f"{field}: {error}") from error
    if version != family:
        raise ScenarioError(f"{field}: {text} is not an IPv{family} address")


def check_part(part: Part, place: str) -> None:
    """Check what one field says against another, here and in the tables below."""
    for name in part.__struct_fields__:
        value, field = getattr(part, name), f"{place}.{name}"
        if isinstance(value, Part):
            check_part(value, field)
        elif name in ADDRESS_FIELDS and value is not None:
            check_address(value, int(name[-1]), field)
        elif name in CHOICE_FIELDS and value == ():
            raise ScenarioError(f"{field}: nothing to choose from")
    if getattr(part, "min_ms", 0) > getattr(part, "max_ms", DELAY_MAX_MS):
        raise ScenarioError(f"{place}.min_ms: more than max_ms")
