"""The calls of the agent API as the document says them; `handlers` answers them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from netsonde import wire
from netsonde.dsse import Signature
from netsonde.errors import ErrorCode
from netsonde.model import (
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
from netsonde.server.about import About, Parameter
from netsonde.server.answers import Health, Readiness

PREFIXES = ("/v1/agents", "", "/v1", "/api/v1")  # aliases of the same handlers


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
                takes=HeartbeatRequest,
            ),
        ),
        "claim": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About(
                "Ask for work.",
                ClaimResponse,
                takes=ClaimRequest,
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
                takes=ExtendRequest,
                text="An original agent is answered with the outcomes alone, as an array.",
            ),
        ),
        "release": AgentCall(
            "POST",
            wire.BODY_MAX_BYTES,
            About("Give leases back unworked.", ReleaseResponse, takes=ReleaseRequest),
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
