"""HTTP checks: one request over a fresh connection per redirect hop, every phase timed apart.

A complete answer is a success whatever its status: the target was reached. The result has the
status for those who expect another.
"""

import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.errors import ResolveError, TargetDeniedError
from netsonde.model import FailureSource, HttpSpec, Outcome, Reason, TaskKind
from netsonde.probe.base import Recorder, early_end_in
from netsonde.probe.connect import (
    Attempt,
    Dialer,
    SocketFailure,
    attempts_to,
    decisive_failure,
    explain_oserror,
    first_connected,
    race,
)
from netsonde.probe.http.request import REDIRECT_STATUSES, BadRequest, Request
from netsonde.probe.http.response import ProtocolFault, ResponseReader
from netsonde.probe.http.stream import SocketStream, Stream, TlsStream, client_context
from netsonde.probe.limits import time_limit
from netsonde.probe.targets import RESOLVE_TIMEOUT_NS, TargetResolver

SHOWN_URL_MAX = 1024  # a result of 21 hops that are all at their limits is below its 256 KiB
SHOWN_ATTEMPTS_MAX = 8  # as SHOWN_URL_MAX
SECONDS_PER_DAY = 86_400
PHASES = ("resolve", "connect", "tls", "request", "first_byte", "transfer")


class HopFailure(Exception):
    """A hop ended without a usable answer, and why."""

    def __init__(self, failure: SocketFailure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Hop:
    """One request and what became of it; phases follow one another without gaps."""

    def __init__(self, clock: Clock, number: int, request: Request) -> None:
        self._clock = clock
        self._number = number
        self._entered_ns = clock.monotonic_ns()
        self.request = request
        self.stage: str | None = None
        self.phases_ns: dict[str, int] = {}
        self.facts: dict[str, Any] = {}
        self.reader: ResponseReader | None = None

    def enter(self, stage: str | None, at_ns: int | None = None) -> None:
        """End the phase that lasts and begin the next, or none."""
        now_ns = self._clock.monotonic_ns() if at_ns is None else at_ns
        if self.stage is not None:
            self.phases_ns[self.stage] = now_ns - self._entered_ns
        self.stage, self._entered_ns = stage, now_ns

    def failed(self, failure: SocketFailure) -> None:
        """Note why the hop has no answer."""
        self.facts |= {"error": failure.text, "reason": failure.reason, "errno": failure.errno}

    def value(self) -> dict[str, Any]:
        """Return the value of this hop's `http_response`."""
        value: dict[str, Any] = {
            "hop": self._number,
            "url": shown(str(self.request.url)),
            "method": self.request.method,
            "phases": milliseconds(self.phases_ns),
        }
        if self.stage is not None:
            value["incomplete_phase"] = self.stage
        if self.reader is not None and self.reader.started:
            value |= self.reader.value()
        return value | self.facts


class HttpProber:
    """Measures HTTP/1.1: one `http_response` per hop, then one `http_summary`.

    `timeout_ms` covers everything, all hops included. `contexts` makes the TLS settings for
    verification on and off.
    """

    kind = TaskKind.HTTP

    def __init__(
        self,
        clock: Clock,
        resolver: TargetResolver,
        *,
        contexts: Callable[[bool], ssl.SSLContext] = lambda verify: client_context(verify=verify),
    ) -> None:
        self._clock = clock
        self._resolver = resolver
        self._dial = Dialer(clock)
        self._make_context = contexts
        self._contexts: dict[bool, ssl.SSLContext] = {}

    async def run(self, spec: HttpSpec, record: Recorder) -> None:
        """Request spec's URL and follow its redirects; see `Prober.run`."""
        record.env.setdefault("policy_version", self._resolver.policy.version)
        started_ns = self._clock.monotonic_ns()
        summary: dict[str, Any] = {"success": False, "url": shown(spec.url), "status": None}
        hops: list[Hop] = []
        try:
            request = Request.first(spec)
            with early_end_in(summary):
                async with time_limit(spec.timeout_ms * NS_PER_MS):
                    await self._follow(request, spec, hops, record)
            summary["success"] = True
            record.ok()
        except BadRequest as error:
            summary |= {"error": str(error), "reason": Reason.DENIED}
            record.fail(Outcome.REJECTED, Reason.DENIED, FailureSource.SELF, str(error))
        except HopFailure as error:
            _fail(error.failure, hops, summary, record)
        except TimeoutError:
            text = f"no complete answer within {spec.timeout_ms} ms"
            if hops and hops[-1].stage is not None:
                text += f"; phase {hops[-1].stage} was not over"
            _fail(SocketFailure(Reason.TIMEOUT, FailureSource.TARGET, text), hops, summary, record)
        finally:
            elapsed_ns = self._clock.monotonic_ns() - started_ns
            _summarise(hops, summary)
            record.observe("http_summary", summary | {"total_ms": elapsed_ns / NS_PER_MS})

    async def close(self) -> None:
        """Release nothing: connections live no longer than their hop."""

    async def _follow(
        self, request: Request, spec: HttpSpec, hops: list[Hop], record: Recorder
    ) -> None:
        """Make requests until one is answered with something else than a redirect."""
        for number in range(1, spec.redirects + 2):
            hop = Hop(self._clock, number, request)
            hops.append(hop)
            try:
                reader = await self._request(hop, spec, record)
                location = reader.header("location")
                if reader.status not in REDIRECT_STATUSES or not location or not spec.redirects:
                    return
                request = request.redirected(reader.status, location)
            except BadRequest as error:
                failure = _protocol_error(f"the redirect is unusable: {error}")
                hop.failed(failure)
                raise HopFailure(failure) from None
            except HopFailure as error:
                hop.failed(error.failure)
                raise
            except (ResolveError, TargetDeniedError) as error:
                hop.facts["error"] = str(error)
                raise
            finally:
                record.observe("http_response", hop.value())
        raise HopFailure(_protocol_error(f"more than {spec.redirects} redirects"))

    async def _request(self, hop: Hop, spec: HttpSpec, record: Recorder) -> ResponseReader:
        """Resolve, connect, secure, ask and read; raise HopFailure for whatever goes wrong."""
        url = hop.request.url
        is_secure = url.scheme == "https"
        context = self._context(spec.verify) if is_secure else None
        hop.enter("resolve")
        found = await self._resolver.resolve(
            url.host,
            spec.family,
            timeout_ns=min(spec.timeout_ms * NS_PER_MS, RESOLVE_TIMEOUT_NS),
        )
        if found.denied:
            hop.facts["denied"] = list(found.denied)
        hop.enter("connect")
        with attempts_to(found.addresses, url.port) as attempts:
            try:
                await race(self._clock, attempts, self._dial)
            finally:
                made = [each for each in attempts if each.is_made]
                hop.facts["attempts"] = [_attempt_value(each) for each in made[:SHOWN_ATTEMPTS_MAX]]
            winner = first_connected(attempts)
            if winner is None or winner.sock is None:
                failure = decisive_failure(attempts)
                raise HopFailure(failure or _protocol_error("no address to connect to"))
            hop.facts["address"] = winner.endpoint
            record.env.setdefault("source", winner.local)
            stream: Stream = SocketStream(winner.sock)
            if context is not None:
                hop.enter("tls", winner.ended_ns)
                stream = await self._secure(hop, stream, context, winner)
            hop.enter("request", None if is_secure else winner.ended_ns)
            reader = ResponseReader(hop.request.method, spec.max_body)
            hop.reader = reader
            await converse(stream, hop, reader)
        return reader

    async def _secure(
        self, hop: Hop, under: Stream, context: ssl.SSLContext, winner: Attempt
    ) -> TlsStream:
        host = hop.request.url.host.partition("%")[0]
        stream = TlsStream(under, context, host)
        facts: dict[str, Any] = {"verified": False}
        hop.facts["tls"] = facts
        try:
            await stream.handshake()
        except ssl.SSLError as error:
            hop.enter(None)
            failure = tls_failure(error)
            facts["error"] = failure.text
            if isinstance(error, ssl.SSLCertVerificationError):
                facts |= await self._second_look(winner, host)
            raise HopFailure(failure) from None
        except OSError as error:
            raise HopFailure(explain_oserror(error)) from None
        facts |= self._dated(stream.facts())
        facts["verified"] = context.verify_mode is ssl.CERT_REQUIRED
        return stream

    async def _second_look(self, winner: Attempt, host: str) -> dict[str, Any]:
        """Return the facts of a certificate that was not accepted, from an unverified handshake."""
        attempt = Attempt(1, winner.address, winner.port)
        try:
            await self._dial(attempt)
            if attempt.sock is None:
                return {"certificate": None}
            stream = TlsStream(SocketStream(attempt.sock), self._context(False), host)
            await stream.handshake()
            return self._dated(stream.facts())
        except ssl.SSLError as error:
            return {"certificate": None, "certificate_error": tls_failure(error).text}
        except OSError as error:
            return {"certificate": None, "certificate_error": explain_oserror(error).text}
        finally:
            attempt.close()

    def _context(self, verify: bool) -> ssl.SSLContext:
        if verify not in self._contexts:
            self._contexts[verify] = self._make_context(verify)
        return self._contexts[verify]

    def _dated(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Add the days until the certificate expires; negative when it has."""
        not_after = (facts.get("certificate") or {}).get("not_after")
        if not_after is None:
            return facts
        left_s = datetime.fromisoformat(not_after).timestamp() - (
            self._clock.realtime_ns() / NS_PER_S
        )
        return facts | {"expires_in_days": round(left_s / SECONDS_PER_DAY, 3)}


async def converse(stream: Stream, hop: Hop, reader: ResponseReader) -> None:
    """Send hop's request and read its answer; hop is in the phase `request`.

    Raises:
        HopFailure: the answer is not HTTP, incomplete, or the connection broke.
    """
    try:
        await stream.send(hop.request.encode())
        hop.enter("first_byte")
        while not reader.done:
            data = await stream.receive()
            if hop.stage == "first_byte":
                hop.enter("transfer")
            if data:
                reader.feed(data)
            else:
                reader.finish()
    except ProtocolFault as error:
        raise HopFailure(_protocol_error(str(error))) from None
    except ssl.SSLError as error:
        raise HopFailure(tls_failure(error)) from None
    except OSError as error:
        raise HopFailure(explain_oserror(error)) from None
    hop.enter(None)


def tls_failure(error: ssl.SSLError) -> SocketFailure:
    """Turn a TLS error into a failure that says in words what was wrong."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"the certificate was not accepted: {error.verify_message}"
    elif isinstance(error, ssl.SSLEOFError):
        text = "the server closed the connection within TLS"
    else:
        told = getattr(error, "reason", None) or str(error)
        text = f"TLS failed: {told.replace('_', ' ').lower()}"
    return SocketFailure(Reason.TLS_FAILED, FailureSource.TARGET, text)


def milliseconds(phases_ns: dict[str, int]) -> dict[str, float]:
    """Return phases as a result has them, in the order they happen in."""
    return {f"{name}_ms": phases_ns[name] / NS_PER_MS for name in PHASES if name in phases_ns}


def shown(url: str) -> str:
    """Cut a URL to what a result keeps of it."""
    return url if len(url) <= SHOWN_URL_MAX else url[:SHOWN_URL_MAX] + "…"


def _protocol_error(text: str) -> SocketFailure:
    return SocketFailure(Reason.PROTOCOL_ERROR, FailureSource.TARGET, text)


def _attempt_value(attempt: Attempt) -> dict[str, Any]:
    rtt_ns, syn_rtt_ns, failure = attempt.rtt_ns, attempt.syn_rtt_ns, attempt.failure
    value: dict[str, Any] = {
        "address": attempt.endpoint,
        "rtt_ms": None if rtt_ns is None else rtt_ns / NS_PER_MS,
        "syn_rtt_ms": None if syn_rtt_ns is None else syn_rtt_ns / NS_PER_MS,
    }
    if failure is not None:
        value |= {"error": failure.text, "reason": failure.reason}
    elif attempt.superseded:
        value["reason"] = "superseded"
    return value


def _fail(
    failure: SocketFailure, hops: Sequence[Hop], summary: dict[str, Any], record: Recorder
) -> None:
    summary |= {"error": failure.text, "reason": failure.reason}
    where = shown(str(hops[-1].request.url)) if hops else summary["url"]
    record.fail(failure.outcome, failure.reason, failure.source, f"{where}: {failure.text}")


def _summarise(hops: Sequence[Hop], summary: dict[str, Any]) -> None:
    """Fill summary in from the last hop; phases are sums over all hops."""
    sums = {
        name: sum(hop.phases_ns[name] for hop in hops if name in hop.phases_ns)
        for name in PHASES
        if any(name in hop.phases_ns for hop in hops)
    }
    summary |= {"redirects": max(len(hops) - 1, 0), "phases": milliseconds(sums)}
    if not hops:
        return
    last = hops[-1]
    summary |= {"final_url": shown(str(last.request.url)), "address": last.facts.get("address")}
    if last.reader is not None and last.reader.started:
        summary |= {"status": last.reader.status, "http_version": last.reader.http_version}
        summary["size"] = last.reader.size
    tls = last.facts.get("tls")
    if tls is not None:
        names = ("version", "verified", "expires_in_days")
        summary["tls"] = {name: tls[name] for name in names if name in tls}
