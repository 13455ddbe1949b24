"""DNS checks: ask one server and report everything it said, with an own exchange per question.

dnspython builds and reads the messages; the sockets, timings and retries are ours. An answer of
the server is a success also when it says that there is nothing (NODATA) or nobody (NXDOMAIN).
"""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import dns.message
import dns.name
import dns.rdatatype

from netsonde.clock import NS_PER_MS, Clock
from netsonde.model import DnsSpec, FailureSource, Outcome, Reason, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, early_end_in
from netsonde.probe.connect import SocketFailure
from netsonde.probe.dns.answer import failure_of, observe_records, response_value, status_of
from netsonde.probe.dns.exchange import Exchange, Exchanger
from netsonde.probe.dns.question import (
    BadQuestion,
    Server,
    parse_server,
    question_of,
    system_servers,
)

EDNS_SIZE_BYTES = 1232  # DNS flag day 2020: no fragmentation on any usual path


class DnsProber:
    """Measures DNS: the records, one `dns_response` per exchange and one `dns_summary`.

    `timeout_ms` is per try; every type is asked at the same time. The servers of resolv_conf are
    this host's own choice and not subject to policy, a `server` in the spec is. `resolvers`, where
    there are any, are asked in place of the former; whoever sets them has judged them.
    """

    kind = TaskKind.DNS

    def __init__(
        self,
        clock: Clock,
        policy: TargetPolicy,
        *,
        resolv_conf: Path = Path("/etc/resolv.conf"),
    ) -> None:
        self._clock = clock
        self.policy = policy
        self.resolvers: tuple[Server, ...] = ()
        self._resolv_conf = resolv_conf
        self._exchanger = Exchanger(clock)

    async def run(self, spec: DnsSpec, record: Recorder) -> None:
        """Ask spec's question; see `Prober.run`."""
        record.env.setdefault("policy_version", self.policy.version)
        started_ns = self._clock.monotonic_ns()
        summary: dict[str, Any] = {"success": False, "query": spec.query, "server": spec.server}
        logs: dict[dns.rdatatype.RdataType, list[Exchange]] = {}
        try:
            with early_end_in(summary):
                name, types = question_of(spec)
                servers = self._servers(spec)
                summary |= {"query": name.to_text(omit_final_dot=True), "server": str(servers[0])}
                logs = {rdtype: [] for rdtype in types}
                async with asyncio.TaskGroup() as group:
                    for rdtype, log in logs.items():
                        group.create_task(self._ask(name, rdtype, servers, spec, log))
        except BadQuestion as error:
            summary |= {"error": str(error), "reason": Reason.DENIED}
            record.fail(Outcome.REJECTED, Reason.DENIED, FailureSource.SELF, str(error))
        finally:
            _observe_logs(summary, logs, record)
            elapsed_ns = self._clock.monotonic_ns() - started_ns
            record.observe("dns_summary", summary | {"total_ms": elapsed_ns / NS_PER_MS})

    async def close(self) -> None:
        """Release nothing: sockets live no longer than their exchange."""

    def _servers(self, spec: DnsSpec) -> tuple[Server, ...]:
        if spec.server is None or spec.server == "system":
            return self.resolvers or system_servers(self._resolv_conf)
        server = parse_server(spec.server)
        self.policy.check(server.address)
        return (server,)

    async def _ask(
        self,
        name: dns.name.Name,
        rdtype: dns.rdatatype.RdataType,
        servers: tuple[Server, ...],
        spec: DnsSpec,
        log: list[Exchange],
    ) -> None:
        """Ask until a server answers or tries are used up; every exchange goes into log."""
        timeout_ns = spec.timeout_ms * NS_PER_MS
        for number in range(max(1 + spec.retries, len(servers))):
            query = dns.message.make_query(
                name,
                rdtype,
                use_edns=0,
                payload=EDNS_SIZE_BYTES,
                id=secrets.randbits(16),
            )
            server = servers[number % len(servers)]
            transports = ("udp", "tcp") if spec.transport == "udp" else ("tcp",)
            for transport in transports:
                exchange = Exchange(server, transport, number + 1)
                log.append(exchange)
                if transport == "udp":
                    await self._exchanger.over_udp(query, exchange, timeout_ns)
                else:
                    await self._exchanger.over_tcp(query, exchange, timeout_ns)
                if not exchange.truncated:
                    break
            failure = log[-1].failure
            if failure is None or (failure.reason is not Reason.TIMEOUT and len(servers) == 1):
                return


def _observe_logs(
    summary: dict[str, Any],
    logs: dict[dns.rdatatype.RdataType, list[Exchange]],
    record: Recorder,
) -> None:
    """Add what every exchange saw, fill summary in, and give the verdict unless cut short."""
    exchanges = [exchange for log in logs.values() for exchange in log]
    summary |= {"sent": len(exchanges), "received": 0, "rtt_ms": None, "types": {}}
    failures: list[tuple[Exchange, SocketFailure]] = []
    for rdtype, log in logs.items():
        for exchange in log:
            record.observe(
                "dns_response", {"query": summary["query"]} | response_value(exchange, rdtype)
            )
        if not log:
            continue
        last, kind = log[-1], dns.rdatatype.to_text(rdtype)
        observe_records(last, rdtype, record)
        if last.local is not None:
            record.env.setdefault("source", last.local)
        if last.message is not None:
            summary["types"][kind] = status_of(last.message, rdtype)
            summary["server"] = str(last.server)
            if summary["rtt_ms"] is None and last.rtt_ns is not None:
                summary["rtt_ms"] = last.rtt_ns / NS_PER_MS
        if (failure := failure_of(last, rdtype)) is not None:
            failures.append((last, failure))
            about = {"query": summary["query"], "server": str(last.server), "type": kind}
            record.observe("dns_error", about | {"error": failure.text, "reason": failure.reason})
            summary["types"].setdefault(kind, failure.reason)
    summary["received"] = sum(exchange.message is not None for exchange in exchanges)
    if not exchanges or "reason" in summary:
        return
    if failures:
        exchange, failure = failures[0]
        text = f"{exchange.server}: {failure.text}"
        summary |= {"error": text, "reason": failure.reason}
        record.fail(failure.outcome, failure.reason, failure.source, text)
        return
    summary["success"] = True
    record.ok()
