"""The rival of the trace bench: scamper. `scripts/rivals` installs it."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.harness import MissingRivalError
from benches.ping_network import Outcome, PingNetwork, ProgramError
from benches.ping_rivals import find
from benches.trace_network import ATTEMPTS, GAP_LIMIT, TIMEOUT_MS, TraceNetwork
from support.rivals import read_warts, responders

RATE_MAX_PPS = 10_000  # more than this scamper does not take
# It gives up being root and its root directory by itself, for which it needs more than we do.
PRIVILEGED = (
    "--bounding-set=-all,+net_raw,+setgid,+setuid,+sys_chroot",
    "--inh-caps=-all",
    "--no-new-privs",
)


class _ScamperHost(PingNetwork):
    """A host whose programs may separate their privileges."""

    def __init__(self, network: PingNetwork) -> None:
        super().__init__(network.host, network.link)
        setpriv, *_ = self._as_agent
        self._as_agent = (setpriv, *PRIVILEGED, "--")


class Scamper:
    """scamper as packaged by the distribution, at the highest rate it takes.

    It asks for one hop of a path after another, as it does unless told otherwise, or for several
    at once: then it is done with a path earlier, and sends more probes beyond the target in vain.
    """

    def __init__(self, network: TraceNetwork, *, hops_at_once: int = 1) -> None:
        self._host = _ScamperHost(network)
        self._paths = network.paths
        self._program, self._reader = find("scamper"), find("sc_warts2json")
        gap_limit = max(GAP_LIMIT, hops_at_once + 1)  # the least it takes
        self._command = (
            f"trace -P icmp-paris -q {ATTEMPTS} -w {TIMEOUT_MS // 1000}"
            f" -N {hops_at_once} -g {gap_limit}"
        )

    def trace_all(self, count: int) -> Mapping[str, float]:
        """Trace the first targets at once."""
        outcome, traces = self._trace(self._paths.targets(count), window=0)
        found = sum(self._paths.found(trace["dst"], responders(trace)) for trace in traces)
        return {
            "rate": len(traces) / outcome.seconds,
            "cpu": outcome.cpu_seconds / len(traces) * 1e6,
            "hops": found / (count * self._paths.hops) * 100,
        }

    def trace_each(self, count: int) -> Mapping[str, float]:
        """Trace the first targets one after another: the milliseconds of the median.

        From the first probe to the last answer, so without starting scamper.
        """
        _, traces = self._trace(self._paths.targets(count), window=1)
        return {"duration": statistics.median(_duration_ms(trace) for trace in traces)}

    def _trace(
        self, targets: Sequence[str], *, window: int
    ) -> tuple[Outcome, list[Mapping[str, Any]]]:
        with tempfile.TemporaryDirectory(prefix="trace-bench-") as directory:
            listed, traced = Path(directory) / "list", Path(directory) / "warts"
            listed.write_text("".join(f"{target}\n" for target in targets))
            outcome = self._host.run(
                (
                    self._program, "-p", str(RATE_MAX_PPS), "-w", str(window), "-O", "warts",
                    "-c", self._command, "-o", traced, "-f", listed,
                )
            )  # fmt: skip
            traces = list(read_warts(self._reader, traced))
        if len(traces) != len(targets):
            raise ProgramError(f"scamper traced {len(traces)} of {len(targets)} targets")
        return outcome, traces


def try_scamper(network: TraceNetwork, *, hops_at_once: int) -> None:
    """Find out whether scamper runs.

    Raises:
        MissingRivalError: it is not installed, not able to stop being root here, or too old.
    """
    rival = Scamper(network, hops_at_once=hops_at_once)
    try:
        rival.trace_all(1)
    except ProgramError as error:
        raise MissingRivalError(f"scamper does not run here: {error}") from error


def _duration_ms(trace: Mapping[str, Any]) -> float:
    """Return the milliseconds from the first probe that was answered to the last answer."""
    begins = [_ms(hop["tx"]) for hop in trace["hops"]]
    ends = [begin + float(hop["rtt"]) for begin, hop in zip(begins, trace["hops"], strict=True)]
    return max(ends) - min(begins)


def _ms(instant: Mapping[str, int]) -> float:
    return instant["sec"] * 1000 + instant["usec"] / 1000
