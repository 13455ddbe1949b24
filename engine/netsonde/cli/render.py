"""Result objects as people read them: one headline each, and the details of a one-shot."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from netsonde.cli.output import coloured, printable

Result = Mapping[str, Any]

OUTCOME_WIDTH = len("target_error")
NUMBER_MAX = 1e12  # no duration, count or TTL is larger
ANSWERS_MAX = 20  # DNS answers shown; the JSON has them all


class Headline(NamedTuple):
    """What one line says of a result."""

    kind: str
    target: str
    outcome: str
    text: str


def target_of(result: Result) -> str:
    """Return what was measured, as one would type it."""
    spec = result.get("spec") or {}
    host = printable(spec.get("host", ""))
    match result.get("kind"):
        case "dns":
            return printable(spec.get("query", ""))
        case "http":
            return printable(spec.get("url", ""))
        case "tcp":
            return f"[{host}]:{spec.get('port')}" if ":" in host else f"{host}:{spec.get('port')}"
        case _:
            return host


def observed(result: Result, name: str) -> Mapping[str, Any]:
    """Return the value of the last observation of that name, empty when there is none."""
    for observation in reversed(result.get("observations") or ()):
        if observation.get("name") == name and isinstance(observation.get("value"), dict):
            value: Mapping[str, Any] = observation["value"]
            return value
    return {}


def headline(result: Result) -> Headline:
    """Sum a result up in one line."""
    kind, outcome = str(result.get("kind")), str(result.get("outcome"))
    text = _SUMMARIES[kind](result) if kind in _SUMMARIES else ""
    error = result.get("error") or {}
    if outcome != "ok" and error:
        text = with_cause(text, error.get("reason"), error.get("message"))
    return Headline(kind, target_of(result), outcome, text)


def with_cause(text: str, reason: object, message: object) -> str:
    """Add to what is said of a result why it is not ok, the first line of the message."""
    sentence = (str(message or "").splitlines() or [""])[0]
    cause = printable(f"{reason}: {sentence}")
    return f"{text}; {cause}" if text else cause


def headline_text(result: Result) -> str:
    """Return the headline as a line of text."""
    return line_text(headline(result))


def line_text(line: Headline) -> str:
    """Lay a headline out as a line of text."""
    padding = " " * max(OUTCOME_WIDTH - len(line.outcome), 0)
    return f"{coloured(line.outcome)}{padding}  {line.kind:<5}  {line.target}  {line.text}".rstrip()


def latency_ms(result: Result) -> float | None:
    """Return the one figure that says how far away the target is, where there is one."""
    match result.get("kind"):
        case "ping":
            return _number(observed(result, "ping_summary").get("avg_rtt_ms"))
        case "tcp":
            return _number(observed(result, "tcp_summary").get("rtt_ms"))
        case "dns":
            return _number(observed(result, "dns_summary").get("rtt_ms"))
        case "trace":
            reached = [hop for hop in _hops(result) if hop.get("reached_destination")]
            return _number(reached[0].get("rtt_ms")) if reached else None
        case "http":
            return _number(observed(result, "http_summary").get("total_ms"))
        case _:
            return None


def details(result: Result) -> list[str]:
    """Return the lines below the headline of a one-shot."""
    detail = _DETAILS.get(str(result.get("kind")))
    return [f"    {line}" for line in detail(result)] if detail else []


def milliseconds(value: object) -> str:
    """Format a duration with as many digits as it deserves."""
    number = _number(value)
    if number is None:
        return "-"
    digits = 3 if number < 10 else 1 if number < 1000 else 0
    return f"{number:.{digits}f} ms"


def ping_text(summary: Mapping[str, Any]) -> str:
    """Say what a ping_summary has; nothing when nothing was sent."""
    if not summary.get("sent"):
        return ""
    text = (
        f"{printable(summary.get('received'))}/{printable(summary.get('sent'))} replies, "
        f"loss {percent(summary.get('loss_pct'))}"
    )
    if _number(summary.get("avg_rtt_ms")) is None:
        return text
    rtts = "/".join(
        milliseconds(summary.get(name)).removesuffix(" ms")
        for name in ("min_rtt_ms", "avg_rtt_ms", "max_rtt_ms")
    )
    return f"{text}, rtt min/avg/max {rtts} ms"


def _ping(result: Result) -> str:
    return ping_text(observed(result, "ping_summary"))


def trace_text(result: Result) -> str:
    """Say how far a trace came; nothing when it has no hop."""
    hops = _hops(result)
    if not hops:
        return ""
    last_ttl = max(_ttl(hop) for hop in hops)
    reached = latency_ms(result)
    text = f"{last_ttl} hop{'' if last_ttl == 1 else 's'}"
    return f"{text}, {milliseconds(reached)}" if reached is not None else text


def _dns(result: Result) -> str:
    summary = observed(result, "dns_summary")
    types = _mapping(summary.get("types"))
    if not types or _number(summary.get("rtt_ms")) is None:
        return ""
    answers = ", ".join(f"{name} {status}" for name, status in types.items())
    text = f"{answers} in {milliseconds(summary['rtt_ms'])} from {summary.get('server')}"
    return printable(text)


def _http(result: Result) -> str:
    summary = observed(result, "http_summary")
    status = summary.get("status")
    if status is None:
        return ""
    redirects = round(_number(summary.get("redirects")) or 0)
    after = f" after {redirects} redirect{'' if redirects == 1 else 's'}" if redirects else ""
    took = milliseconds(summary.get("total_ms"))
    return printable(f"status {status}{after}, {summary.get('size')} bytes in {took}")


def _tcp(result: Result) -> str:
    summary = observed(result, "tcp_summary")
    if not summary.get("success"):
        return ""
    return f"connected to {printable(summary.get('address'))} in {milliseconds(latency_ms(result))}"


def _dns_answers(result: Result) -> list[str]:
    answers = [
        answer
        for observation in result.get("observations") or ()
        if observation.get("name") == "dns_response"
        for answer in _mappings(_mapping(observation.get("value")).get("answers"))
    ]
    lines = [
        printable("  ".join(str(answer.get(name)) for name in ("name", "ttl", "type", "data")))
        for answer in answers[:ANSWERS_MAX]
    ]
    hidden = len(answers) - len(lines)
    return [*lines, f"… and {hidden} more"] if hidden else lines


def _http_hops(result: Result) -> list[str]:
    lines = []
    for observation in result.get("observations") or ():
        if observation.get("name") != "http_response":
            continue
        value = _mapping(observation.get("value"))
        timings = ", ".join(
            f"{printable(name).removesuffix('_ms')} {milliseconds(took)}"
            for name, took in _mapping(value.get("phases")).items()
            if took is not None
        )
        status, url = (printable(value.get(name) or "-") for name in ("status", "url"))
        lines.append(f"{status}  {url}  {timings}")
    return lines


def _hops(result: Result) -> list[Mapping[str, Any]]:
    return _mappings(observed(result, "trace").get("hops"))


def _ttl(hop: Mapping[str, Any]) -> int:
    return round(_number(hop.get("ttl")) or 0)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def percent(value: object) -> str:
    """Format a percentage."""
    number = _number(value)
    return "-" if number is None else f"{number:g} %"


def _number(value: object) -> float | None:
    """Return a number that prints as one; foreign results hold anything."""
    if not isinstance(value, (int, float)) or not abs(value) <= NUMBER_MAX:
        return None
    return float(value)


_SUMMARIES: Mapping[str, Callable[[Result], str]] = {
    "ping": _ping,
    "trace": trace_text,
    "dns": _dns,
    "http": _http,
    "tcp": _tcp,
}
_DETAILS: Mapping[str, Callable[[Result], Sequence[str]]] = {
    "dns": _dns_answers,
    "http": _http_hops,
}
