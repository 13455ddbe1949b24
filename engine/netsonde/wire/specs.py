"""What people write into specs: a target and options, checked with messages for people."""

import functools
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect

from netsonde.errors import ErrorCode, RequestError
from netsonde.model import (
    HOST_MAX,
    SPEC_TYPES,
    TARGET_FIELDS,
    Family,
    HttpSpec,
    PingSpec,
    TaskKind,
    TaskSpec,
    TraceSpec,
)
from netsonde.wire.codec import validation_error

# RFC 1123 2.1 labels, and the underscore that service names use (RFC 8552).
_LABEL = re.compile(r"^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$")
# What `ipaddress` takes for IPv4, found ten times as fast.
_DOTTED = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.|\Z)){4}(?<!\.)\Z")
_METHOD = re.compile(r"[A-Z]{1,20}\Z")
_FIELD = re.compile(r"^\$\.(\w+)(?:\.(\w+))?$")
ANY_HOST = "192.0.2.1"  # RFC 5737


def build_spec(kind: TaskKind, target: str, options: Mapping[str, Any]) -> TaskSpec:
    """Build the spec of one target from what a person wrote.

    tcp takes `host:port`, `[v6]:port`, or a bare host with a `port` option.

    Raises:
        RequestError: ERR_VALIDATION naming the field and what is allowed.
    """
    known = _fields_of(kind)
    for name in options:
        if name not in known:
            raise _refusal(name, f"{kind} has no option {name}; it has {', '.join(sorted(known))}")
        _check_inner(kind, name, options[name])
    fields = {name: value for name, value in options.items() if value is not None}
    fields |= _target_fields(kind, target.strip(), fields)
    return convert_spec({"kind": kind.value, **fields})


def host_specs(kind: TaskKind, options: Mapping[str, Any]) -> Callable[[str], TaskSpec]:
    """Check the options of a kind that measures hosts, once for all; return `build_spec` for them.

    Raises:
        RequestError: an option is wrong; names the field and what is allowed.
    """
    name = TARGET_FIELDS[kind]
    any_host = build_spec(kind, ANY_HOST, options)

    def spec_of(host: str) -> TaskSpec:
        checked = _checked_host(name, host.strip())
        if len(checked) > HOST_MAX:
            return build_spec(kind, host, options)  # refuses it
        return msgspec.structs.replace(any_host, **{name: checked})

    return spec_of


@functools.cache
def _fields_of(kind: TaskKind) -> frozenset[str]:
    """Return the names of a spec's fields; msgspec evaluates annotations to tell."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(SPEC_TYPES[kind]))


def _check_inner(kind: TaskKind, name: str, value: Any) -> None:
    """Refuse a misspelt field of an option that is a structure: it would be passed over."""
    if not isinstance(value, Mapping):
        return
    info = inspect.type_info(SPEC_TYPES[kind])
    known = sorted(_inner_fields(_type_of(info, name)))
    for inner in value:
        if known and inner not in known:
            message = f"{name} has no field {inner}; it has {', '.join(known)}"
            raise _refusal(f"{name}.{inner}", message)


def _inner_fields(info: inspect.Type | None) -> Iterator[str]:
    types = info.types if isinstance(info, inspect.UnionType) else (info,)
    for one in types:
        if isinstance(one, inspect.StructType):
            yield from (field.encode_name for field in one.fields)


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
    check_spec(spec)
    return spec


def check_spec(spec: TaskSpec) -> None:
    """Check what no field can tell by itself; of a spec that nobody wrote by hand too.

    Raises:
        RequestError: ERR_VALIDATION naming the field and what is allowed.
    """
    if isinstance(spec, TraceSpec):
        _check_trace(spec)
    elif isinstance(spec, PingSpec):
        _check_method(spec)
    elif isinstance(spec, HttpSpec) and not _METHOD.match(spec.method):
        raise _refusal("method", f"method must be 1 to 20 capital letters, not {spec.method!r}")
    if isinstance(spec, TraceSpec | PingSpec):
        if spec.source is not None:
            _check_source(spec.source, spec.family)
        if spec.interface is not None:
            _check_interface(spec.interface)


def _check_trace(spec: TraceSpec) -> None:
    if spec.first_hop > spec.max_hops:
        raise _refusal(
            "first_hop",
            f"first_hop must be a whole number from 1 to max_hops, {spec.max_hops}, "
            f"not {spec.first_hop}",
        )
    if spec.method == "icmp" and spec.port is not None:
        raise _refusal("port", f"port {spec.port} is for method udp or tcp, not icmp: leave it out")
    if spec.method == "tcp":
        if spec.size != TraceSpec(host="any").size:
            raise _refusal("size", "size is for method icmp or udp, a SYN has none: leave it out")
        if spec.pmtud:
            raise _refusal("pmtud", "pmtud is for method icmp or udp: a SYN has no size to vary")


def _check_method(spec: PingSpec) -> None:
    if spec.method == "icmp" and spec.port is not None:
        raise _refusal("port", f"port {spec.port} is for method tcp or udp, not icmp: leave it out")
    if spec.method != "icmp" and spec.port is None:
        raise _refusal(
            "port", f"port must be a whole number from 1 to 65535 with method {spec.method}"
        )
    if spec.method == "tcp" and spec.size != PingSpec(host="any").size:
        raise _refusal("size", "size is for method icmp or udp, a connect has none: leave it out")


def _check_interface(name: str) -> None:
    """Refuse what the kernel allows no interface to be called (dev_valid_name, net/core/dev.c)."""
    if not name.isprintable() or " " in name or "/" in name or name in (".", ".."):
        raise _refusal("interface", f"interface must be the name of an interface, not {name!r}")


def _check_source(source: str, family: Family) -> None:
    allowed = f"source must be an IP address of this host, not {source!r}"
    try:
        version = ipaddress.ip_address(source).version
    except ValueError as error:
        raise _refusal("source", allowed) from error
    if family not in ("any", version):
        raise _refusal("source", f"source must be an IPv{family} address, as family says, "
                                 f"not {source!r}")  # fmt: skip


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
    if _DOTTED.match(text):
        return True
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
    outer, inner = match.groups()
    name, info, value = outer, _type_of(inspect.type_info(type_), outer), fields.get(outer)
    if inner is not None and isinstance(value, Mapping):
        name, info, value = inner, _type_of(info, inner), value.get(inner)
    if info is not None and (allowed := _allowed(info)):
        return _refusal(
            ".".join(filter(None, match.groups())), f"{name} must be {allowed}, not {value!r}"
        )
    return refusal


def _type_of(info: inspect.Type | None, name: str) -> inspect.Type | None:
    """Return the type of a structure's field."""
    if isinstance(info, inspect.UnionType):
        info = next((one for one in info.types if isinstance(one, inspect.StructType)), None)
    for field in getattr(info, "fields", ()):
        if field.encode_name == name:
            found: inspect.Type = field.type
            return found
    return None


def _allowed(type_: inspect.Type) -> str | None:
    text: str | None = None
    match type_:
        case inspect.IntType(ge=int() as low, le=int() as high):
            text = f"a whole number from {low} to {high}"
        case inspect.FloatType(ge=float() | int() as low, le=float() | int() as high):
            text = f"a number from {low:g} to {high:g}"
        case inspect.FloatType(gt=float() | int() as low, le=float() | int() as high):
            text = f"a number above {low:g}, at most {high:g}"
        case inspect.LiteralType(values=values):
            text = "one of " + ", ".join(str(value) for value in values)
        case inspect.BoolType():
            text = "true or false"
        case inspect.StrType(min_length=int() as low, max_length=int() as high):
            text = f"text of {low} to {high} characters"
        case inspect.UnionType(types=types):
            text = next((text for text in map(_allowed, types) if text), None)
    return text


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
