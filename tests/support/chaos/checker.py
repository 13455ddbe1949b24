"""The verdict on a run, from its logs and its database alone. Pure."""

from collections import Counter

from msgspec import Struct

from netsonde.clock import NS_PER_S
from support.chaos.case import Case
from support.chaos.evidence import Evidence, Published
from support.chaos.faults import Fault
from support.chaos.fleet_invariants import GOOD, refusals
from support.chaos.invariants import INVARIANTS, WAKE_NS

SHOWN = 5  # findings of each invariant
KINDS_FROM = 200  # faults; of so many, nine tenths of the kinds must be among them
KINDS_ABSENT_SHARE = 0.1
REFUSED_FROM = 10_000  # leases; in so many, some agent must have refused a configuration
STREAMED_FROM = 1_000  # leases; of so many, a good part must have come as streams bring them
STREAMED_SHARE = 0.25
LOSSES = ("I1", "I7", "I9")


class Verdict(Struct, frozen=True, kw_only=True):
    """What a run came to."""

    findings: dict[str, list[str]]  # by invariant; those that hold are not in it
    leases: int
    executions: int
    messages: int
    grants: int
    streamed: int  # of the grants
    faults: dict[str, int]
    recovery_s: float  # the worst
    metered: int = 0  # envelopes of metrics that passed, copies among them
    published: int = 0  # configurations
    bad: int = 0  # of those
    refused: int = 0  # by agents

    def count(self, *invariants: str) -> int:
        """Return how often some invariants were broken."""
        return sum(len(self.findings.get(name, ())) for name in invariants)

    @property
    def holds(self) -> bool:
        """Whether every invariant held."""
        return not self.findings

    def missing(self, leases: int, faults: int) -> list[str]:
        """Say what a run that was asked for so much did not reach, kinds of faults among it."""
        struck = sum(self.faults.values())
        lines = []
        if self.leases < leases:
            lines.append(f"{self.leases} of {leases} leases")
        if struck < faults:
            lines.append(f"{struck} of {faults} faults")
        if leases >= STREAMED_FROM and self.streamed < STREAMED_SHARE * self.grants:
            lines.append(f"only {self.streamed} of {self.grants} leases came by streams")
        if leases >= REFUSED_FROM and not self.refused:
            lines.append(f"no agent refused any of {self.bad} bad configurations")
        absent = sorted(set(Fault) - self.faults.keys())
        if faults >= KINDS_FROM and len(absent) > KINDS_ABSENT_SHARE * len(Fault):
            lines.append(f"kinds of faults that never struck: {', '.join(absent)}")
        return lines

    def report(self) -> list[str]:
        """Say what was broken, a line each, not all of it."""
        lines = []
        for name, found in self.findings.items():
            lines += (INVARIANTS[name].__doc__ or name).splitlines()[:1]
            lines += [f"  {text}" for text in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"  and {len(found) - SHOWN} more")
        return lines


def judge(evidence: Evidence) -> Verdict:
    """Hold every invariant against the evidence."""
    case = Case(evidence, WAKE_NS)
    findings = {name: list(invariant(case)) for name, invariant in INVARIANTS.items()}
    recovered = [
        calm.recovered - calm.faults_ended for calm in case.calms if calm.recovered is not None
    ]
    published = [one for one in evidence.events if isinstance(one, Published)]
    return Verdict(
        findings={name: found for name, found in findings.items() if found},
        leases=sum(len(rows) for rows in case.final.values()),
        executions=len(evidence.executions),
        messages=len(evidence.exchanges),
        grants=sum(len(one.grants) for one in evidence.exchanges),
        streamed=sum(len(one.grants) for one in evidence.exchanges if one.is_stream),
        faults=dict(Counter(one.fault for one in case.struck)),
        recovery_s=max(recovered, default=0) / NS_PER_S,
        metered=sum(one.metered is not None for one in evidence.exchanges),
        published=len(published),
        bad=sum(one.what != GOOD for one in published),
        refused=refusals(case),
    )


def summary(verdict: Verdict, *, seed: int, seconds: float, commit: str) -> str:
    """Return a run's one line."""
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(verdict.faults.items()))
    return (
        f"chaos: seed {seed}, {verdict.leases} leases, {sum(verdict.faults.values())} faults"
        f" ({kinds}), {100 * verdict.streamed / max(verdict.grants, 1):.0f} % by streams,"
        f" lost {verdict.count(*LOSSES)}, double-accepted {verdict.count('I2')},"
        f" over capacity {verdict.count('I5')}, late {verdict.count('I6')},"
        f" miscounted {verdict.count('I10')} in {verdict.metered} envelopes of metrics,"
        f" misconfigured {verdict.count('I11')} by {verdict.published} configurations"
        f" ({verdict.bad} bad, refused {verdict.refused} times),"
        f" granted while drained {verdict.count('drain')},"
        f" worst recovery {verdict.recovery_s:.1f} s, {seconds:.0f} s, commit {commit}"
    )
