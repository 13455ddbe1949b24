"""The public surface: names other programs may rely on."""

import subprocess
import sys

import netsonde.control_plane

FIXED = {
    "AgentConfigEnvelope", "BackoffPolicy", "ClaimRequest", "ClaimResponse",
    "ControlPlaneClient", "ControlPlaneError", "ControlPlaneTransport", "DnsSpec",
    "ErrorEnvelope", "ExtendOutcome", "ExtendRequest", "ExtendResponse", "HeartbeatRequest",
    "HeartbeatResponse", "HttpControlPlaneTransport", "HttpSpec", "Lease", "LeaseExtendClient",
    "LeaseReport", "MetricSample", "MetricsEnvelope", "Observation", "PingSpec",
    "RegisterRequest", "RegisterResponse", "ReleaseRequest", "ReportRequest", "ReportResponse",
    "TaskKind", "TaskSpec", "TcpSpec", "TraceSpec", "TransportError",
}  # fmt: skip
BESIDE = {
    "AgentCommand", "ClaimGrant", "ClaimSink", "Extension", "MemoryControlPlaneTransport",
    "MetricHistogram", "MetricRejection", "MetricsResponse", "Repeat", "ReportSource",
    "TransportRequest", "TransportResponse", "TransportStream",
}  # fmt: skip


def test_the_names_that_are_fixed_are_there_and_no_others() -> None:
    assert set(netsonde.control_plane.__all__) == FIXED | BESIDE
    for name in netsonde.control_plane.__all__:
        assert getattr(netsonde.control_plane, name) is not None


def test_the_session_stays_internal() -> None:
    assert not hasattr(netsonde.control_plane, "AgentRuntime")


def test_importing_netsonde_does_not_import_the_client() -> None:
    code = "import sys, netsonde; print('aiohttp' in sys.modules, 'msgspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.split() == ["False", "False"]
