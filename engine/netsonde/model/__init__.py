"""The contract's types and the results: frozen values, no behaviour beyond their own consistency.

Types that travel keep the wire's units in their names (`lease_until_ms`); logic is nanoseconds and
`netsonde.wire` is the one place where one becomes the other. Receivers ignore unknown fields; an
absent optional field means its default.
"""

from netsonde.model.configuration import AgentConfigEnvelope, ConfigStatus
from netsonde.model.errors import ErrorEnvelope
from netsonde.model.heartbeat import AgentCommand, CommandType, HeartbeatRequest, HeartbeatResponse
from netsonde.model.leases import (
    ClaimRequest,
    ClaimResponse,
    ExtendOutcome,
    ExtendRequest,
    ExtendResponse,
    ExtendResult,
    Lease,
    ReleaseRequest,
    ReleaseResponse,
    Repeat,
)
from netsonde.model.metrics import (
    MetricHistogram,
    MetricRejection,
    MetricSample,
    MetricsEnvelope,
    MetricsResponse,
)
from netsonde.model.registration import RegisterRequest, RegisterResponse
from netsonde.model.reports import (
    LeaseReport,
    ReportRequest,
    ReportResponse,
    ReportResult,
    ReportStatus,
)
from netsonde.model.results import Failure, FailureSource, Measurement, Observation, Outcome, Reason
from netsonde.model.specs import (
    HOST_MAX,
    SPEC_TYPES,
    TARGET_FIELDS,
    DnsSpec,
    Family,
    HttpSpec,
    PingExpect,
    PingSpec,
    TaskKind,
    TaskSpec,
    TcpSpec,
    TimeoutMs,
    TraceSpec,
)
from netsonde.model.values import ID_MAX, MINTED_ID_MAX

__all__ = [
    "HOST_MAX",
    "ID_MAX",
    "MINTED_ID_MAX",
    "SPEC_TYPES",
    "TARGET_FIELDS",
    "AgentCommand",
    "AgentConfigEnvelope",
    "ClaimRequest",
    "ClaimResponse",
    "CommandType",
    "ConfigStatus",
    "DnsSpec",
    "ErrorEnvelope",
    "ExtendOutcome",
    "ExtendRequest",
    "ExtendResponse",
    "ExtendResult",
    "Failure",
    "FailureSource",
    "Family",
    "HeartbeatRequest",
    "HeartbeatResponse",
    "HttpSpec",
    "Lease",
    "LeaseReport",
    "Measurement",
    "MetricHistogram",
    "MetricRejection",
    "MetricSample",
    "MetricsEnvelope",
    "MetricsResponse",
    "Observation",
    "Outcome",
    "PingExpect",
    "PingSpec",
    "Reason",
    "RegisterRequest",
    "RegisterResponse",
    "ReleaseRequest",
    "ReleaseResponse",
    "Repeat",
    "ReportRequest",
    "ReportResponse",
    "ReportResult",
    "ReportStatus",
    "TaskKind",
    "TaskSpec",
    "TcpSpec",
    "TimeoutMs",
    "TraceSpec",
]
