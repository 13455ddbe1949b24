"""Who an agent is, and the terms it gets: the call `register`."""

from typing import Any

from msgspec import Struct


class RegisterRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Introduce an agent; all but `hostname` is unknown to an original control plane."""

    hostname: str | None = None
    agent_key: str | None = None
    enrolment_token: str | None = None
    version: str | None = None
    boot_id: str | None = None
    instance_id: str | None = None
    capacities: dict[str, int] = {}
    inventory: dict[str, Any] = {}


class RegisterResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The agent's identity and the server's terms; `agent_id` 0 is refused by the client."""

    agent_id: int
    lease_duration_ms: int
    heartbeat_timeout_ms: int
    auth_token: str
    server_time_ms: int | None = None
    heartbeat_interval_ms: int | None = None
    claim_wait_ms: int | None = None
    extend_fraction: float | None = None
    limits: dict[str, int] = {}
    config_revision: str | int | None = None
    token_expires_at: str | None = None
