"""netsonde's part in the trace bench: a program that is started on the host as its rivals are.

usage: python -m benches.trace_ours MODE --first ADDRESS --count N --source ADDRESS
--routers ADDRESS,... --attempts N --timeout-ms N --gap-limit N

Prints one JSON object. `all` traces the targets at once and counts the hops whose address is the
true one; `each` traces them one after another and takes the median of their milliseconds.
"""

import argparse
import json
import select
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

from benches.trace_paths import Paths
from netsonde._native.icmp import (
    ANSWER_FORMAT,
    COMPLETION_FORMAT,
    TRACE_ICMP,
    TRACE_REQUEST_BYTES,
    TRACED,
    EchoEngine,
    pack_traces,
)

COMPLETION = struct.Struct(COMPLETION_FORMAT)
ANSWER = struct.Struct(ANSWER_FORMAT)
SUBMIT_BATCH = 512  # traces made at once
LAST_TTL = 30
WAIT_S = 30
ADDRESS_BYTES = 4
REFUSED_NS = -1  # the round trip of a probe that was not sent


class Traces:
    """Traces on their way into an engine and what came out. Trace n goes to target n."""

    def __init__(self, engine: EchoEngine, chosen: argparse.Namespace) -> None:
        self._engine = engine
        self._chosen = chosen
        self._poller = select.poll()
        self._poller.register(engine.fileno(), select.POLLIN)

    def run(self, first: int, count: int) -> dict[int, bytes]:
        """Trace some targets; return their answers, by number.

        Raises:
            TimeoutError: the engine had nothing to say for 30 s.
        """
        answers: dict[int, bytes] = {}
        made, offered = b"", first
        while len(answers) < count:
            while offered < first + count:
                made = made or self._make(offered, min(SUBMIT_BATCH, first + count - offered))
                taken = self._engine.submit_traces(made)
                offered += taken
                made = made[taken * TRACE_REQUEST_BYTES :]
                if made:
                    break
            if not self._poller.poll(WAIT_S * 1000):
                raise TimeoutError("the engine has nothing to say")
            answers.update(self._collect())
        return answers

    def _make(self, first: int, count: int) -> bytes:
        start = int(self._chosen.first) + first
        addresses = struct.pack(f">{count}I", *range(start, start + count))
        return pack_traces(
            4, addresses, self._chosen.source.packed, token=first,
            timeout_ns=self._chosen.timeout_ms * 1_000_000, first_ttl=1, last_ttl=LAST_TTL,
            attempts=self._chosen.attempts, gap_limit=self._chosen.gap_limit,
        )  # fmt: skip

    def _collect(self) -> Iterator[tuple[int, bytes]]:
        """Yield the answers to each trace that has ended."""
        while completions := self._engine.poll():
            for token, number, _, _, kind, *_ in COMPLETION.iter_unpack(completions):
                if kind == TRACED:
                    _, answers, _ = self._engine.take_trace(number)
                    yield token, answers


def responders(answers: bytes) -> dict[int, str]:
    """Return who answered first at each TTL."""
    found: dict[int, str] = {}
    for _, rtt_ns, address, _, _, _, ttl, *_ in ANSWER.iter_unpack(answers):
        if rtt_ns != REFUSED_NS:
            found.setdefault(ttl, str(IPv4Address(address[:ADDRESS_BYTES])))
    return found


def trace_all(traces: Traces, chosen: argparse.Namespace) -> dict[str, float]:
    """Trace all targets at once."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    answers = traces.run(0, chosen.count)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    paths = Paths(source=chosen.source, first=chosen.first, routers=chosen.routers)
    found = sum(
        paths.found(str(paths.first + number), responders(each)) for number, each in answers.items()
    )
    return {
        "rate": len(answers) / seconds,
        "cpu": cpu / len(answers) * 1e6,
        "hops": found / (chosen.count * paths.hops) * 100,
    }


def trace_each(traces: Traces, chosen: argparse.Namespace) -> dict[str, float]:
    """Trace one target after another."""
    took_ms = []
    for number in range(chosen.count):
        begun = time.perf_counter()
        traces.run(number, 1)
        took_ms.append((time.perf_counter() - begun) * 1000)
    return {"duration": statistics.median(took_ms)}


MODES: dict[str, Callable[[Traces, argparse.Namespace], dict[str, float]]] = {
    "all": trace_all,
    "each": trace_each,
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="trace_ours", description=__doc__.partition("\n")[0])
    made.add_argument("mode", choices=MODES)
    made.add_argument("--first", type=IPv4Address, required=True, help="first target")
    made.add_argument("--count", type=int, required=True, help="how many from there on")
    made.add_argument("--source", type=IPv4Address, required=True, help="own address")
    made.add_argument("--routers", type=lambda text: text.split(","), required=True)
    made.add_argument("--attempts", type=int, required=True, help="at a silent hop")
    made.add_argument("--timeout-ms", type=int, required=True)
    made.add_argument("--gap-limit", type=int, required=True, help="hops that may be silent")
    return made


def main() -> None:
    """Run a mode and print what it says."""
    chosen = parser().parse_args()
    with EchoEngine(4, backend="header") as engine:
        engine.open_traces(TRACE_ICMP)
        engine.start()
        print(json.dumps(MODES[chosen.mode](Traces(engine, chosen), chosen)))


if __name__ == "__main__":
    main()
