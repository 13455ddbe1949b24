"""The control plane's settings: checked when made, frozen after."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.tls import ServerTls

DEFAULT_TERMS_MS: Mapping[TaskKind, int] = MappingProxyType(
    {
        TaskKind.DNS: 20_000,
        TaskKind.TCP: 20_000,
        TaskKind.HTTP: 45_000,
        TaskKind.PING: 45_000,
        TaskKind.TRACE: 90_000,
    }
)
TERM_MIN_MS = 100  # below this the round trip of an extension is the term
TERM_MAX_MS = 3_600_000
STANDING_TERM_MIN_MS = 1_000
OFFLINE_MAX_MS = 31 * 86_400_000
DAY_MS = 86_400_000
AUDIT_MAX_MS = 3_660 * DAY_MS
RETAIN_MIN_MS = 60_000
RETAIN_MAX_MS = 3_660 * DAY_MS
DATABASE_MIN_BYTES = 16 << 20  # less is full of checks and agents alone
DATABASE_MAX_BYTES = 16 << 40  # what SQLite reaches with pages of 4 KiB
CLAIM_WAIT_MAX_MS = 55_000  # proxies cut a silent answer at 60 s
SHUTDOWN_MAX_S = 600.0
# From where to where a setting may be; of those in UNBOUNDED_AT_0 a 0 is no bound.
BOUNDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "grace_ms": (10, 600_000),
        "max_lease_ms": (TERM_MIN_MS, DAY_MS),
        "standing_term_ms": (STANDING_TERM_MIN_MS, DAY_MS),
        "offline_ms": (0, OFFLINE_MAX_MS),
        "max_attempts": (1, 100),
        "requeue_base_ms": (1, 3_600_000),
        "requeue_cap_ms": (1, DAY_MS),
        "heartbeat_interval_ms": (100, 3_600_000),
        "claim_wait_ms": (0, CLAIM_WAIT_MAX_MS),
        "legacy_hold_ms": (0, 20_000),
        "quota_scale": (1, 1_000),
        "audit_ms": (3_600_000, AUDIT_MAX_MS),
        "connections_max": (1, 1_000_000),
        "retain_results_ms": (RETAIN_MIN_MS, RETAIN_MAX_MS),
        "retain_dead_letters_ms": (RETAIN_MIN_MS, RETAIN_MAX_MS),
        "max_database_bytes": (DATABASE_MIN_BYTES, DATABASE_MAX_BYTES),
        "storage_reserve_bytes": (0, DATABASE_MAX_BYTES),
    }
)
UNBOUNDED_AT_0 = frozenset({"retain_results_ms", "retain_dead_letters_ms", "max_database_bytes"})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What a control plane is told.

    `database` None keeps everything in memory. `listen` and `operator_listen` are `host:port`,
    `[v6]:port` or `:port` on loopback; port 0 lets the kernel choose. Agents that reach the server
    from other hosts enrol with `enrolment_token`, which has no end, or with tokens made later;
    operators on other hosts need `operator_token_file`. Their calls are kept for `audit_ms`.
    `standing_term_ms` is the term of leases that repeat, `offline_ms` how long past it an agent
    goes on that reaches nobody. A task is tried `max_attempts` times, again after a random wait of
    up to `requeue_base_ms`, doubled with each attempt, `requeue_cap_ms` at most. Agents are told to
    let a claim without work wait for `claim_wait_ms`; an original agent's waits `legacy_hold_ms`.
    `quota_scale` multiplies how often one agent may call. A listener with `tls`, and the operators'
    with `operator_tls`, speaks HTTPS only; each takes `connections_max` connections.

    Results and dead letters go when they are older than `retain_…_ms`, the oldest results also
    while the database holds more than `max_database_bytes`; 0 is no bound. While less than
    `storage_reserve_bytes` are free, results are taken and no new work is.

    Raises:
        ConfigError: naming the setting and what is allowed.
    """

    listen: str = "127.0.0.1:8080"
    operator_listen: str = "127.0.0.1:8090"
    database: Path | None = None
    enrolment_token: str | None = field(default=None, repr=False)
    operator_token_file: Path | None = None
    terms_ms: Mapping[TaskKind, int] = field(default_factory=lambda: DEFAULT_TERMS_MS)
    grace_ms: int = 2_000
    max_lease_ms: int = 600_000
    standing_term_ms: int = 3_600_000
    offline_ms: int = 86_400_000
    max_attempts: int = 3
    requeue_base_ms: int = 1_000
    requeue_cap_ms: int = 60_000
    heartbeat_interval_ms: int = 15_000
    claim_wait_ms: int = 20_000
    legacy_hold_ms: int = 20_000
    quota_scale: int = 1
    audit_ms: int = 366 * DAY_MS
    retain_results_ms: int = 30 * DAY_MS
    retain_dead_letters_ms: int = 30 * DAY_MS
    max_database_bytes: int = 0
    storage_reserve_bytes: int = 64 << 20
    shutdown_timeout_s: float = 10.0
    tls: ServerTls | None = None
    operator_tls: ServerTls | None = None
    connections_max: int = 10_000

    def __post_init__(self) -> None:
        """Check every setting."""
        endpoint("listen", self.listen)
        endpoint("operator_listen", self.operator_listen)
        for kind in TaskKind:
            _between(f"terms_ms[{kind}]", self.terms_ms.get(kind, 0), TERM_MIN_MS, TERM_MAX_MS)
        for name, (low, high) in BOUNDS.items():
            _between(name, getattr(self, name), low, high)
        _between("max_lease_ms", self.max_lease_ms, max(self.terms_ms.values()), DAY_MS)
        _between("requeue_cap_ms", self.requeue_cap_ms, self.requeue_base_ms, DAY_MS)
        if not 0 <= self.shutdown_timeout_s <= SHUTDOWN_MAX_S:
            raise ConfigError(
                f"shutdown_timeout_s must be 0 to {SHUTDOWN_MAX_S:g}, not {self.shutdown_timeout_s}"
            )
        if self.enrolment_token is not None and len(self.enrolment_token) < 16:
            raise ConfigError("enrolment_token must have at least 16 characters")
        self._check_exposure()

    def _check_exposure(self) -> None:
        if not is_loopback(self.operator_listen) and self.operator_token_file is None:
            raise ConfigError(
                f"operator_listen {self.operator_listen} is reachable from other hosts: name an "
                "operator_token_file, or listen on loopback"
            )

    @property
    def is_enrolment_open(self) -> bool:
        """Whether any agent that reaches the listener may register."""
        return self.enrolment_token is None and is_loopback(self.listen)

    def operator_token(self) -> str | None:
        """Read the operators' bearer token from its file; None when there is no file.

        Raises:
            ConfigError: the file cannot be read or holds no token.
        """
        path = self.operator_token_file
        if path is None:
            return None
        try:
            token = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"operator_token_file {path} cannot be read: {error}") from error
        if len(token) < 16:
            raise ConfigError(f"operator_token_file {path} must hold at least 16 characters")
        return token


def endpoint(setting: str, text: str) -> tuple[str, int]:
    """Split `host:port` into its parts; an empty host is loopback.

    Raises:
        ConfigError: naming the setting.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not separator or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{setting} must be host:port with a port from 0 to 65535, not {text!r}")
    return host, int(port)


def is_loopback(text: str) -> bool:
    """Whether the host of `host:port` is reachable from this host only."""
    host, _ = endpoint("listen", text)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _between(setting: str, value: int, low: int, high: int) -> None:
    is_boundless = setting in UNBOUNDED_AT_0
    if not low <= value <= high and not (is_boundless and value == 0):
        allowed = f"0 (no bound) or {low}" if is_boundless else f"{low}"
        raise ConfigError(f"{setting} must be {allowed} to {high}, not {value}")
