"""What DNS answers say: their status, their records, and the values of the observations."""

from collections.abc import Iterator
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype

from netsonde.clock import NS_PER_MS
from netsonde.model import FailureSource, Reason
from netsonde.probe.base import Recorder
from netsonde.probe.connect import SocketFailure
from netsonde.probe.dns.exchange import Exchange

CHAIN_MAX = 16  # CNAMEs followed in one answer; resolvers give up earlier
RECORDS_MAX = 150  # per answer: two of them with their records stay below 512 observations
TEXT_MAX = 16_384  # characters of names and record data per answer: a result is at most 256 KiB
_PROTOCOL_RCODES = frozenset({dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS})
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def status_of(message: dns.message.Message, rdtype: dns.rdatatype.RdataType) -> str:
    """Name an answer: answer, nodata, referral, or its rcode in small letters."""
    if message.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(message.rcode()).lower()
    if any(True for _ in answers_to(message, rdtype)):
        return "answer"
    kinds = {rrset.rdtype for rrset in message.authority}
    is_referral = dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds
    return "referral" if is_referral and not message.flags & dns.flags.AA else "nodata"


def answers_to(
    message: dns.message.Message, rdtype: dns.rdatatype.RdataType
) -> Iterator[tuple[dns.rdata.Rdata, int]]:
    """Yield the records that answer message's question, behind CNAMEs too, with their DNS TTLs."""
    if not message.question:
        return
    question = message.question[0]
    records = [rrset for rrset in message.answer if rrset.rdclass == question.rdclass]
    names = {question.name}
    for _ in range(CHAIN_MAX):
        aliases = {
            rdata.target
            for rrset in records
            if rrset.rdtype == dns.rdatatype.CNAME and rrset.name in names
            for rdata in rrset
        }
        if aliases <= names:
            break
        names |= aliases
    for rrset in records:
        if rrset.name in names and rdtype in (rrset.rdtype, dns.rdatatype.ANY):
            for rdata in rrset:
                yield rdata, rrset.ttl


def _record_fields(rdata: Any) -> tuple[str, dict[str, Any]] | None:
    """Return the observation's name and fields of the record types that have their own."""
    match rdata.rdtype:
        case dns.rdatatype.A:
            return "dns_a_record", {"address": rdata.address}
        case dns.rdatatype.AAAA:
            return "dns_aaaa_record", {"address": rdata.address}
        case dns.rdatatype.MX:
            exchange = rdata.exchange.to_text(omit_final_dot=True)
            return "dns_mx_record", {"preference": rdata.preference, "exchange": exchange}
        case dns.rdatatype.NS:
            return "dns_ns_record", {"host": rdata.target.to_text(omit_final_dot=True)}
        case dns.rdatatype.TXT:
            return "dns_txt_record", {"data": [_printable(each) for each in rdata.strings]}
    return None


def _printable(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").translate(_ESCAPES)


def observe_records(exchange: Exchange, rdtype: dns.rdatatype.RdataType, record: Recorder) -> None:
    """Add one observation per answering record of the types that have their own name."""
    message = exchange.message
    if message is None:
        return
    query = message.question[0].name.to_text(omit_final_dot=True) if message.question else ""
    budget = TEXT_MAX
    for count, (rdata, dns_ttl_s) in enumerate(answers_to(message, rdtype)):
        named = _record_fields(rdata)
        if named is None:
            continue
        budget -= len(query) + sum(len(str(each)) for each in named[1].values())
        if count >= RECORDS_MAX or budget < 0:
            return
        about = {"query": query, "server": str(exchange.server)}
        record.observe(named[0], about | named[1] | {"ttl": dns_ttl_s})


def _answers_listed(message: dns.message.Message) -> tuple[list[dict[str, Any]], bool]:
    """Return the answer section as far as it fits into a result, and whether all of it did."""
    listed: list[dict[str, Any]] = []
    budget = TEXT_MAX
    for rrset in message.answer:
        name = rrset.name.to_text(omit_final_dot=True)
        for rdata in rrset:
            text = rdata.to_text().translate(_ESCAPES)
            budget -= len(name) + len(text)
            if len(listed) >= RECORDS_MAX or budget < 0:
                return listed, False
            listed.append(
                {
                    "name": name,
                    "ttl": rrset.ttl,
                    "type": dns.rdatatype.to_text(rdata.rdtype),
                    "data": text,
                }
            )
    return listed, True


def response_value(exchange: Exchange, rdtype: dns.rdatatype.RdataType) -> dict[str, Any]:
    """Return the value of an exchange's `dns_response`."""
    rtt_ns = exchange.rtt_ns
    value: dict[str, Any] = {
        "type": dns.rdatatype.to_text(rdtype),
        "server": str(exchange.server),
        "transport": exchange.transport,
        "try": exchange.number,
        "rtt_ms": None if rtt_ns is None else rtt_ns / NS_PER_MS,
        "tx_clock": "user",
        "rx_clock": exchange.rx_clock,
        "phases": exchange.phases,
        "strays": exchange.strays,
    }
    if exchange.failure is not None:
        value |= {"error": exchange.failure.text, "reason": exchange.failure.reason}
    message = exchange.message
    if message is None:
        return value
    value |= {
        "status": "truncated" if exchange.truncated else status_of(message, rdtype),
        "rcode": dns.rcode.to_text(message.rcode()),
        "flags": dns.flags.to_text(message.flags).split(),
        "size": exchange.size,
    }
    return value if exchange.truncated else value | _sections(message)


def _sections(message: dns.message.Message) -> dict[str, Any]:
    answers, is_complete = _answers_listed(message)
    value: dict[str, Any] = {
        "counts": {
            "answer": sum(len(each) for each in message.answer),
            "authority": sum(len(each) for each in message.authority),
            "additional": sum(len(each) for each in message.additional),
        },
        "answers": answers,
    }
    if not is_complete:
        value["answers_cut"] = True
    errors = [each for each in message.options if isinstance(each, dns.edns.EDEOption)]
    if errors:
        value["ede"] = [
            {"code": int(each.code), "text": (each.text or "").translate(_ESCAPES)[:256]}
            for each in errors[:8]
        ]
    return value


def failure_of(exchange: Exchange, rdtype: dns.rdatatype.RdataType) -> SocketFailure | None:
    """Return why this exchange is no answer to the question; None when it is one."""
    message = exchange.message
    if exchange.failure is not None or message is None:
        return exchange.failure or SocketFailure(
            Reason.CANCELLED, FailureSource.SELF, "the exchange was cut short"
        )
    rcode = message.rcode()
    if rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return None
    reason = Reason.PROTOCOL_ERROR if rcode in _PROTOCOL_RCODES else Reason.MISMATCH
    text = f"the server answered {dns.rcode.to_text(rcode)} for {dns.rdatatype.to_text(rdtype)}"
    return SocketFailure(reason, FailureSource.TARGET, text)
