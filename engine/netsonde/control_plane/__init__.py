"""The agent's side of the control plane contract (docs/control-plane-api.md).

The names here are stable: they keep their meaning, and what they accept only grows.
"""

from netsonde.backoff import BackoffPolicy
from netsonde.control_plane.client import ControlPlaneClient
from netsonde.control_plane.grants import ClaimGrant, Extension, LeaseExtendClient
from netsonde.control_plane.http import HttpControlPlaneTransport
from netsonde.control_plane.memory import MemoryControlPlaneTransport
from netsonde.control_plane.streaming import ClaimSink, ReportSource
from netsonde.control_plane.transport import (
    ControlPlaneTransport,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.errors import ControlPlaneError, TransportError
from netsonde.model import (
    AgentConfigEnvelope,
    ClaimRequest,
    ClaimResponse,
    DnsSpec,
    ErrorEnvelope,
    ExtendOutcome,
    ExtendRequest,
    ExtendResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    HttpSpec,
    Lease,
    LeaseReport,
    MetricHistogram,
    MetricRejection,
    MetricSample,
    MetricsEnvelope,
    MetricsResponse,
    Observation,
    PingSpec,
    RegisterRequest,
    RegisterResponse,
    ReleaseRequest,
    Repeat,
    ReportRequest,
    ReportResponse,
    TaskKind,
    TaskSpec,
    TcpSpec,
    TraceSpec,
)

__all__ = [
    "AgentConfigEnvelope",
    "BackoffPolicy",
    "ClaimGrant",
    "ClaimRequest",
    "ClaimResponse",
    "ClaimSink",
    "ControlPlaneClient",
    "ControlPlaneError",
    "ControlPlaneTransport",
    "DnsSpec",
    "ErrorEnvelope",
    "ExtendOutcome",
    "ExtendRequest",
    "ExtendResponse",
    "Extension",
    "HeartbeatRequest",
    "HeartbeatResponse",
    "HttpControlPlaneTransport",
    "HttpSpec",
    "Lease",
    "LeaseExtendClient",
    "LeaseReport",
    "MemoryControlPlaneTransport",
    "MetricHistogram",
    "MetricRejection",
    "MetricSample",
    "MetricsEnvelope",
    "MetricsResponse",
    "Observation",
    "PingSpec",
    "RegisterRequest",
    "RegisterResponse",
    "ReleaseRequest",
    "Repeat",
    "ReportRequest",
    "ReportResponse",
    "ReportSource",
    "TaskKind",
    "TaskSpec",
    "TcpSpec",
    "TraceSpec",
    "TransportError",
    "TransportRequest",
    "TransportResponse",
    "TransportStream",
]
