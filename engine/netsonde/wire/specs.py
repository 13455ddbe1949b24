"""What people write into specs: a target and options, checked with messages for people."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect

from netsonde.errors import ErrorCode, RequestError
from netsonde.model import SPEC_TYPES, TARGET_FIELDS, TaskKind, TaskSpec, TraceSpec
from netsonde.wire.codec import validation_error

# RFC 1123 2.1 labels, and the underscore that service names use (RFC 8552).
_LABEL = re.compile(r"^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$")
_FIELD = re.compile(r"^\$\.(\w+)")


def build_spec(kind: TaskKind, target: str, options: Mapping[str, Any]) -> TaskSpec:
    """Build the spec of one target from what a person wrote.

    tcp takes `host:port`, `[v6]:port`, or a bare host with a `port` option.

    Raises:
        RequestError: ERR_VALIDATION naming the field and what is allowed.
    """
    known = {field.encode_name for field in msgspec.structs.fields(SPEC_TYPES[kind])}
    for name in options:
        if name not in known:
            raise _refusal(name, f"{kind} has no option {name}; it has {', '.join(sorted(known))}")
    fields = {name: value for name, value in options.items() if value is not None}
    fields |= _target_fields(kind, target.strip(), fields)
    return convert_spec({"kind": kind.value, **fields})


def convert_spec(fields: Mapping[str, Any]) -> TaskSpec:
    """Convert plain fields, `kind` among them, into a spec.

    Raises:
        RequestError: ERR_VALIDATION naming the field and what is allowed.
    """
    kind = next((known for known in TaskKind if known == fields.get("kind")), None)
    if kind is None:
        allowed = ", ".join(TaskKind)
        raise _refusal("kind", f"kind must be one of {allowed}, not {fields.get('kind')!r}")
    type_ = SPEC_TYPES[kind]
    try:
        spec: TaskSpec = msgspec.convert(dict(fields), type_)
    except msgspec.ValidationError as error:
        raise _explained(type_, fields, error) from error
    if isinstance(spec, TraceSpec) and spec.first_hop > spec.max_hops:
        raise _refusal(
            "first_hop",
            f"first_hop must be a whole number from 1 to max_hops, {spec.max_hops}, "
            f"not {spec.first_hop}",
        )
    return spec


def _target_fields(kind: TaskKind, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    name = TARGET_FIELDS[kind]
    match kind:
        case TaskKind.TCP:
            return _host_and_port(target, options)
        case TaskKind.HTTP:
            return {name: _checked_url(target)}
        case TaskKind.DNS:
            return {name: _checked_name(target)}
        case _:
            return {name: _checked_host(name, target)}


def _host_and_port(target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    host, port = target, options.get("port")
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", target)
    if bracketed:
        host, text = bracketed[1], bracketed[2]
    elif target.count(":") == 1:
        host, _, text = target.partition(":")
    else:
        text = None
    if text is not None:
        if not text.isascii() or not text.isdecimal():
            raise _refusal("port", f"port must be a whole number from 1 to 65535, not {text!r}")
        port = int(text)
    if port is None:
        raise _refusal("port", f"{target!r} has no port: write host:port, port from 1 to 65535")
    return {"host": _checked_host("host", host), "port": port}


def _checked_host(field: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if _is_address(host):
        return host
    if _is_name(host):
        return host
    raise _refusal(field, f"{field} must be an address or a host name, not {host!r}")


def _checked_name(name: str) -> str:
    """Accept any DNS name, `TYPE name` as the original's producers wrote it, and the root."""
    words = name.split()
    bare = words[1] if len(words) == 2 else name
    if bare == "." or _is_name(bare) or _is_address(bare):
        return name
    raise _refusal("query", f"query must be a DNS name, not {name!r}")


def _checked_url(url: str) -> str:
    problem = "url must be http://host[:port]/… or https://host[:port]/…"
    if not url.isascii() or any(character <= " " for character in url):
        raise _refusal("url", f"{problem}, without spaces, not {url!r}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refusal("url", f"{problem}, not {url!r} ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise _refusal("url", f"{problem}, not {url!r}")
    _checked_host("url", parts.hostname)
    return url


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or labels[-1].isdecimal():
        return False  # an all-numeric last label is a mistyped address (RFC 3696 2)
    return all(_LABEL.match(label) for label in labels)


def _explained(
    type_: type[TaskSpec], fields: Mapping[str, Any], error: msgspec.ValidationError
) -> RequestError:
    """Say which values a field takes, where its type tells."""
    refusal = validation_error(error)
    match = _FIELD.match(refusal.violations[0][0])
    if match is None:
        return refusal
    name = match[1]
    for field in inspect.type_info(type_).fields:  # type: ignore[attr-defined]
        if field.encode_name == name:
            allowed = _allowed(field.type)
            if allowed:
                return _refusal(name, f"{name} must be {allowed}, not {fields.get(name)!r}")
    return refusal


def _allowed(type_: inspect.Type) -> str | None:
    text: str | None = None
    match type_:
        case inspect.IntType(ge=int() as low, le=int() as high):
            text = f"a whole number from {low} to {high}"
        case inspect.LiteralType(values=values):
            text = "one of " + ", ".join(str(value) for value in values)
        case inspect.BoolType():
            text = "true or false"
        case inspect.StrType(min_length=int() as low, max_length=int() as high):
            text = f"text of {low} to {high} characters"
        case inspect.StrType(pattern=str() as pattern):
            text = f"text that matches {pattern}"
        case inspect.UnionType(types=types):
            text = next((text for text in map(_allowed, types) if text), None)
    return text


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
