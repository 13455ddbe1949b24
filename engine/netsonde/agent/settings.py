"""What each of the agent's settings may be.

A check returns a value's one form, or raises ValueError with what is allowed.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from netsonde.dsse import KEYS_MAX, PublicKey
from netsonde.errors import ConfigError
from netsonde.model import ID_MAX, TaskKind
from netsonde.pacing import RATE_MAX_PPS, RATE_MIN_PPS
from netsonde.probe.ping.engines import BACKENDS

DEFAULT_CAPACITIES: Mapping[TaskKind, int] = MappingProxyType(
    {
        TaskKind.DNS: 200,
        TaskKind.HTTP: 64,  # a TLS handshake each: more would share one core's time
        TaskKind.TCP: 128,
        TaskKind.PING: 256,
        TaskKind.TRACE: 32,  # 96 packets each at once
    }
)
CAPACITY_MAX = 10_000  # ten claims' worth
CLAIM_WAIT_MAX_S = 55.0  # proxies cut a silent answer at 60 s
TOKEN_MAX_CHARS = 4096
LABELS_MAX = 64  # as many as the control plane keeps
LABEL_MAX_CHARS = 128
LOG_LEVELS = ("debug", "info", "warning", "error")

Check = Callable[[Any], Any]


def _between(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return check


def _number_between(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, not {value!r}")
        return float(value)

    return check


def _rate(value: Any) -> float:
    is_number = type(value) in (int, float)
    if not is_number or not (value == 0 or RATE_MIN_PPS <= value <= RATE_MAX_PPS):
        raise ValueError(
            f"must be 0, for no limit, or a number from {RATE_MIN_PPS:f} to {RATE_MAX_PPS},"
            f" not {value!r}"
        )
    return float(value)


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 255:
        raise ValueError(f"must be 1 to 255 printable characters, not {value!r}")
    return value


def _secret(value: Any) -> str:
    is_text = isinstance(value, str) and value.isascii() and value.isprintable()
    if not is_text or not 0 < len(value) <= TOKEN_MAX_CHARS or " " in value:
        raise ValueError(f"must be 1 to {TOKEN_MAX_CHARS} ASCII characters without spaces")
    return str(value)


def _address(value: Any) -> str:
    example = "such as https://control.example.net or http://127.0.0.1:8080"
    if not isinstance(value, str):
        raise ValueError(f"must be an http or https address {example}, not {value!r}")  # noqa: TRY004
    try:
        parts = urlsplit(value)
        has_port = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ValueError(f"must be an address {example}: {error}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"must be an address without user, query and fragment, {example}")
    if parts.scheme not in {"http", "https"} or not parts.hostname or not has_port:
        raise ValueError(f"must be an http or https address {example}, not {value!r}")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"must be a path, not {value!r}")
    return Path(value)


def rules(value: Any) -> tuple[str, ...]:
    """Check that a value can be the target policy's rules.

    Raises:
        ValueError: saying what is allowed.
    """
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(rule, str) for rule in listed):
        raise ValueError(f'must be a list such as ["public", "10.0.0.0/8"], not {value!r}')
    return tuple(listed)


def _backends(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    is_list = isinstance(listed, list | tuple) and len(listed) > 0
    if not is_list or any(listed.count(name) > 1 or name not in BACKENDS for name in listed):
        raise ValueError(f"must list some of {', '.join(BACKENDS)}, each once, not {value!r}")
    return tuple(listed)


def _capacities(value: Any) -> Mapping[TaskKind, int]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a table of kinds and numbers, not {value!r}")  # noqa: TRY004
    given = {}
    for kind, count in value.items():
        if kind not in set(TaskKind):
            raise ValueError(f"has no kind {kind!r}: there are {', '.join(TaskKind)}")
        try:
            given[TaskKind(kind)] = _between(0, CAPACITY_MAX)(count)
        except ValueError as error:
            raise ValueError(f"of {kind} {error}") from None
    full = {**DEFAULT_CAPACITIES, **given}
    if not any(full.values()):
        raise ValueError("must leave the agent at least one kind to measure")
    return MappingProxyType(full)


def _labels(value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or len(value) > LABELS_MAX:
        raise ValueError(f"must be a table of at most {LABELS_MAX} names and texts, not {value!r}")
    for name, text in value.items():
        for part in (name, text):
            is_text = isinstance(part, str) and part.isprintable()
            if not is_text or len(part) > LABEL_MAX_CHARS or not name:
                raise ValueError(
                    f"must have printable texts of at most {LABEL_MAX_CHARS} characters, "
                    f"not {name!r} = {text!r}"
                )
    return MappingProxyType(dict(value))


def _keys(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or len(listed) > KEYS_MAX:
        raise ValueError(f"must be a list of at most {KEYS_MAX} public keys, not {value!r}")
    try:
        return tuple(PublicKey(key if isinstance(key, str) else "").text for key in listed)
    except ConfigError as error:
        raise ValueError(f"must be a list of public keys: {error}") from None


def endpoint(text: str) -> tuple[str, int]:
    """Read an address to listen on.

    Raises:
        ValueError: saying what is allowed.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535
    if not separator or not is_port:
        raise ValueError(f"must be host:port or :port, which is loopback, not {text!r}")
    return host, int(port)


def _listen(value: Any) -> str:
    endpoint(_text(value))
    return str(value)


def _interval(value: Any) -> float:
    return 0.0 if value == 0 and value is not False else float(_number_between(5, 3600)(value))


def _level(value: Any) -> str:
    if value not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}, not {value!r}")
    return str(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")  # noqa: TRY004
    return value


CHECKS: Mapping[str, Check] = {
    "control_plane": _address,
    "state_dir": _path,
    "hostname": _text,
    "labels": _labels,
    "capacities": _capacities,
    "targets": rules,
    "deny": rules,
    "enrolment_token": _optional(_secret),
    "enrolment_token_file": _optional(_path),
    "agent_id": _optional(_between(1, ID_MAX)),
    "auth_token": _optional(_secret),
    "ca_file": _optional(_path),
    "client_cert_file": _optional(_path),
    "client_key_file": _optional(_path),
    "claim_wait_s": _optional(_number_between(0, CLAIM_WAIT_MAX_S)),
    "report_interval_ms": _between(1, 60_000),
    "drain_timeout_s": _number_between(0, 3600),
    "target_starts_per_s": _number_between(0.001, 1_000_000),
    "packets_per_s": _rate,
    "ping_packets_per_s": _rate,
    "prefix_packets_per_s": _rate,
    "target_packets_per_s": _rate,
    "ping_backends": _backends,
    "spool_rows": _between(1, 100_000_000),
    "spool_bytes": _between(1 << 20, 1 << 40),  # below 1 MiB four large results fill it
    "metrics_interval_s": _interval,
    "metrics_listen": _optional(_listen),
    "log_level": _level,
    "log_json": _truth,
    "trusted_keys": _keys,
    "ceiling_file": _optional(_path),
}
