"""The agent's settings: from a TOML file, the environment and the caller; checked once, frozen."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import msgspec
from msgspec import Struct, field

from netsonde import settings_file
from netsonde.agent.settings import CHECKS, DEFAULT_CAPACITIES, endpoint, rules
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.ping.engines import DEFAULT_BACKENDS, Backend
from netsonde.settings_file import Found
from netsonde.tls import ClientTls, client_tls

DEFAULT_STATE_DIR = Path("/var/lib/netsonde/agent")

Table = Mapping[str, Any]


class AgentConfig(Struct, frozen=True, kw_only=True):
    """What an agent is told; `load` reads it from where operators write it.

    `capacities` bounds what runs at once per kind; kinds left out have their default, 0 leaves a
    kind to others. `targets` and `deny` are the target policy's. `claim_wait_s` None leaves it to
    the control plane. `target_starts_per_s` bounds how often one target's measurements may begin,
    the `…packets_per_s` how often packets of ping may leave: the agent's, those of ping, those to
    one /24 or /48, to one address; 0 is no bound. `ping_backends` is what they may leave by.
    `agent_id` and `auth_token`, both or neither, replace the first registration. What
    `enrolment_token_file` holds goes before `enrolment_token`. `trusted_keys` are whose
    configurations are taken, `ceiling_file` how much these may ask for.
    `metrics_interval_s` is how often the control plane is told the agent's metrics, 0 for never;
    `metrics_listen` where they can be scraped. `ca_file` has the authorities to trust instead of
    the system's, `client_cert_file` and `client_key_file` what to show a control plane that asks
    for a certificate.

    Raises:
        ConfigError: naming the setting and what is allowed.
    """

    control_plane: str
    state_dir: Path = DEFAULT_STATE_DIR
    hostname: str = field(default_factory=socket.gethostname)
    labels: Mapping[str, str] = {}
    capacities: Mapping[TaskKind, int] = DEFAULT_CAPACITIES
    targets: tuple[str, ...] = ("public",)
    deny: tuple[str, ...] = ()
    enrolment_token: str | None = None
    enrolment_token_file: Path | None = None
    agent_id: int | None = None
    auth_token: str | None = None
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    claim_wait_s: float | None = None
    report_interval_ms: int = 200
    drain_timeout_s: float = 20.0
    target_starts_per_s: float = 100.0
    packets_per_s: float = 0.0
    ping_packets_per_s: float = 0.0
    prefix_packets_per_s: float = 0.0
    target_packets_per_s: float = 0.0
    ping_backends: tuple[Backend, ...] = DEFAULT_BACKENDS
    spool_rows: int = 1_000_000
    spool_bytes: int = 256 << 20
    metrics_interval_s: float = 30.0
    metrics_listen: str | None = None
    log_level: str = "info"
    log_json: bool = False
    trusted_keys: tuple[str, ...] = ()
    ceiling_file: Path | None = None

    def __post_init__(self) -> None:
        """Check every setting and put each into its one form."""
        for name, check in CHECKS.items():
            try:
                checked = check(getattr(self, name))
            except ValueError as error:
                raise ConfigError(f"{name} {error}") from None
            msgspec.structs.force_setattr(self, name, checked)
        if (self.agent_id is None) != (self.auth_token is None):
            raise ConfigError("agent_id and auth_token belong together: set both or neither")
        TargetPolicy(self.targets, deny=self.deny)
        self.tls()

    def tls(self) -> ClientTls:
        """Return the certificate files to reach the control plane with.

        Raises:
            ConfigError: some are named that make no sense without others, or without https.
        """
        return client_tls(
            self.control_plane, self.ca_file, self.client_cert_file, self.client_key_file
        )

    @property
    def metrics_endpoint(self) -> tuple[str, int] | None:
        """Where to listen for whoever scrapes metrics; loopback where no host is named."""
        return None if self.metrics_listen is None else endpoint(self.metrics_listen)

    def __repr__(self) -> str:
        """Show every setting but the secrets."""
        shown = (
            f"{name}={'***' if name in _SECRETS and value is not None else repr(value)}"
            for name in self.__struct_fields__
            for value in (getattr(self, name),)
        )
        return f"AgentConfig({', '.join(shown)})"

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        *,
        defaults: Table = MappingProxyType({}),
        **overrides: Any,
    ) -> Self:
        """Read settings; what comes later wins: defaults, the file, the environment, overrides.

        The environment has NETSONDE_<SETTING> and the original agent's names; an empty variable is
        an unset one. An override of None is not given.

        Raises:
            ConfigError: naming the setting, where it was written, and what is allowed.
        """
        found: dict[str, Any] = dict(defaults)
        if path is not None:
            _merge(found, _checked(settings_file.read(path, CHECKS)))
        _merge(found, _checked(_from_environment(environ)))
        _merge(found, {name: value for name, value in overrides.items() if value is not None})
        if not found.get("control_plane"):
            raise ConfigError(
                "control_plane is not set: give the control plane's address, such as"
                " https://control.example.net, in the file, as NETSONDE_CONTROL_PLANE or as option"
            )
        return cls(**found)


_SECRETS = frozenset({"enrolment_token", "auth_token"})
_MERGED = frozenset({"capacities", "labels"})  # tables: a later source adds to an earlier one


# ── where settings are written ───────────────────────────────────────────────────────────────────


def _checked(found: Found) -> dict[str, Any]:
    """Check each value where its place is still known; all of `capacities` come together later."""
    settings: dict[str, Any] = {}
    for name, where, value in found:
        try:
            CHECKS[name](value)
            if name in {"targets", "deny"}:
                TargetPolicy(**{"allow" if name == "targets" else name: rules(value)})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except ValueError as error:
            raise ConfigError(f"{where}: {name} {error}") from None
        _merge(settings, {name: value})
    return settings


def _merge(settings: dict[str, Any], more: Table) -> None:
    for name, value in more.items():
        if name in _MERGED and name in settings and isinstance(value, Mapping):
            settings[name] = {**settings[name], **value}
        else:
            settings[name] = value


_ORIGINAL_NAMES: Mapping[str, str] = {
    "AGENT_CONTROL_PLANE": "control_plane",
    "AGENT_ID": "agent_id",
    "AGENT_AUTH_TOKEN": "auth_token",
}


def _from_environment(environ: Mapping[str, str]) -> Found:
    for variable, name in _ORIGINAL_NAMES.items():
        if text := environ.get(variable, "").strip():
            yield name, variable, _value(name, text)
    for kind in TaskKind:
        variable = f"AGENT_POOL_{kind.upper()}_SIZE"
        if text := environ.get(variable, "").strip():
            yield "capacities", variable, {kind: _number(text)}
    for name in CHECKS:
        variable = f"NETSONDE_{name.upper()}"
        if text := environ.get(variable, "").strip():
            yield name, variable, _value(name, text)


def _value(name: str, text: str) -> Any:
    """Read a variable's text as what its setting takes; what does not fit stays as it is."""
    default = getattr(_EXAMPLE, name)
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(default, int | float) or name == "agent_id":
        return _number(text)
    if isinstance(default, tuple):
        return _parts(text)
    if isinstance(default, Mapping):
        pairs = [part.partition("=") for part in _parts(text)]
        if not all(equals for _, equals, _ in pairs):
            return text
        is_count = name == "capacities"
        return {key.strip(): _number(to) if is_count else to.strip() for key, _, to in pairs}
    return text


def _parts(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


_EXAMPLE = AgentConfig(control_plane="http://localhost", hostname="x", claim_wait_s=1.0)
