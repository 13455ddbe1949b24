"""The calls of the agent API as the document says them; `handlers` answers them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from netsonde import wire
from netsonde.dsse import Signature
from netsonde.errors import ErrorCode
from netsonde.model import (
    ID_MAX,
    MINTED_ID_MAX,
    AgentConfigEnvelope,
    ClaimRequest,
    ClaimResponse,
    ErrorEnvelope,
    ExtendOutcome,
    ExtendRequest,
    ExtendResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    Lease,
    LeaseReport,
    MetricsEnvelope,
    MetricsResponse,
    RegisterRequest,
    RegisterResponse,
    ReleaseRequest,
    ReleaseResponse,
    ReportRequest,
    ReportResponse,
    ReportStatus,
)
from netsonde.server.about import About, Parameter, counted, sized, within
from netsonde.server.answers.health import Health, Readiness
from netsonde.server.config import CLAIM_WAIT_MAX_MS
from netsonde.server.fleet import DONE_COMMANDS_MAX

PREFIXES = ("/v1/agents", "", "/v1", "/api/v1")  # aliases of the same handlers


AnyId = Annotated[int, within(0, ID_MAX)]
LeaseIds = Annotated[tuple[AnyId, ...], counted(0, wire.LEASE_IDS_PER_EXTEND_MAX)]
CommandId = Annotated[int, within(1, MINTED_ID_MAX)]


# The contract's types promise no bounds; these say those of this control plane.


class HeartbeatBody(HeartbeatRequest, frozen=True, kw_only=True, omit_defaults=True):
    """Say that the agent lives, what it holds and how it feels."""

    seq: Annotated[int, within(0, MINTED_ID_MAX)] | None = None
    done_commands: Annotated[tuple[CommandId, ...], counted(0, DONE_COMMANDS_MAX)] = ()


class ClaimBody(ClaimRequest, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for work: free slots per kind. `claim_id` makes the request repeatable."""

    capacities: dict[str, Annotated[int, Meta(extra_json_schema={"minimum": 0})]]
    claim_id: Annotated[str, sized(1, 128)] | None = None
    max_leases: Annotated[int, within(1, wire.LEASES_PER_CLAIM_MAX)] | None = None
    wait_ms: Annotated[int, within(0, CLAIM_WAIT_MAX_MS)] | None = None


class ExtendBody(ExtendRequest, frozen=True, kw_only=True):
    """Ask for more time on leases that are still being worked on."""

    lease_ids: LeaseIds
    extend_by_ms: Annotated[int, Meta(extra_json_schema={"minimum": 0})]


class ReleaseBody(ReleaseRequest, frozen=True, kw_only=True, omit_defaults=True):
    """Give leases back unworked, or what is held of claims; no attempt is consumed."""

    lease_ids: LeaseIds = ()
    claim_ids: Annotated[tuple[str, ...], counted(0, wire.LEASE_IDS_PER_EXTEND_MAX)] = ()
    keep_lease_ids: Annotated[tuple[AnyId, ...], counted(0, wire.LINES_MAX)] = ()


class SignedConfig(AgentConfigEnvelope, frozen=True, kw_only=True):
    """A signed configuration; the original's five fields are a copy that nobody verified."""

    payload_type: str
    payload: str
    signatures: tuple[Signature, ...]


class LeaseLine(Struct, frozen=True, tag="lease", tag_field="t"):
    """A lease that was granted."""

    lease: Lease


class RevokeLine(Struct, frozen=True, tag="revoke", tag_field="t"):
    """Leases to stop working on."""

    lease_ids: tuple[int, ...]


class ConfigLine(Struct, frozen=True, tag="config", tag_field="t"):
    """There is a newer configuration."""

    revision: int


class PingLine(Struct, frozen=True, tag="ping", tag_field="t"):
    """The stream lives."""


class ClaimEndLine(Struct, frozen=True, omit_defaults=True, tag="end", tag_field="t"):
    """The last line of a claim's stream; one without it broke off."""

    reason: Literal["credits", "wait", "shutdown", "error"]
    error: ErrorEnvelope | None = None


class ReportLine(LeaseReport, frozen=True, kw_only=True, tag="r", tag_field="t"):
    """One item of a report, with a number of the agent's choice."""

    seq: int


class AcknowledgementLine(Struct, frozen=True, omit_defaults=True, tag="a", tag_field="t"):
    """What became of one item, after its commit."""

    seq: int
    status: ReportStatus
    error: str | None = None


class ReportEndLine(Struct, frozen=True, omit_defaults=True, tag="end", tag_field="t"):
    """The last line of a report's answer: everything up to `through` is answered."""

    through: Annotated[int, Meta(ge=0)] | None = None
    reason: Literal["error"] | None = None
    error: ErrorEnvelope | None = None


class AgentCall(NamedTuple):
    """One call: its method, its body's limit, what it takes and gives."""

    method: str
    max_bytes: int
    about: About


LIVEZ = About("Say that the process answers.", Health)
READYZ = About("Say that the process works: 503 while it shuts down.", Readiness)

AGENT_CALLS: Mapping[str, AgentCall] = MappingProxyType(
    {
        "register": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About(
                "Introduce an agent.",
                RegisterResponse,
                takes=RegisterRequest,
                refuses=(ErrorCode.ENROLMENT_REQUIRED,),
                text="The same agent_key is the same agent_id, and a new token.",
            ),
        ),
        "heartbeat": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About(
                "Say that the agent lives, what it holds and how it feels.",
                HeartbeatResponse,
                takes=HeartbeatBody,
            ),
        ),
        "claim": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About(
                "Ask for work.",
                ClaimResponse,
                takes=ClaimBody,
                answer_line=LeaseLine | RevokeLine | ConfigLine | PingLine | ClaimEndLine,
                text="With `Accept: application/x-ndjson` leases come as work does.",
            ),
        ),
        "extend": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About(
                "Ask for more time on leases.",
                ExtendResponse | tuple[ExtendOutcome, ...],
                takes=ExtendBody,
                text="An original agent is answered with the outcomes alone, as an array.",
            ),
        ),
        "release": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About("Give leases back unworked.", ReleaseResponse, takes=ReleaseBody),
        ),
        "report": AgentCall(
            "POST",
            wire.REPORT_MAX_BYTES,
            About(
                "Report results.",
                ReportResponse,
                takes=ReportRequest,
                takes_line=ReportLine,
                answer_line=AcknowledgementLine | ReportEndLine,
                text="The answer comes after the commit; of a stream, line by line.",
            ),
        ),
        "metrics": AgentCall(
            "POST",
            wire.REPORT_MAX_BYTES,
            About(
                "Send counters, gauges and histograms.",
                MetricsResponse,
                takes=MetricsEnvelope,
                status=202,
            ),
        ),
        "config": AgentCall(
            "GET",
            wire.BODY_MAX_BYTES,
            About(
                "Ask for the signed configuration.",
                SignedConfig,
                also={304: None},
                headers=(
                    Parameter(
                        name="If-None-Match",
                        where="header",
                        schema={"type": "string"},
                        text="The ETag of the configuration that the agent has.",
                    ),
                ),
                refuses=(ErrorCode.NOT_FOUND,),
            ),
        ),
    }
)
