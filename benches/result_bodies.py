"""Result bodies as a control plane stores them, measured by the real probers on loopback.

Loopback has no routers: a trace's hops are written by hand, in the prober's shape.
"""

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from benches.harness import UnableError
from netsonde import wire
from netsonde.cli.measuring import build_specs, measure_for_person
from netsonde.model import Measurement, Observation, Outcome, TaskKind, TaskSpec
from netsonde.server.beacon import NAME, beacon
from support.http_server import http_server, response
from support.traces import hop, probe, trace_value

HOPS = 12
PROBES = 3  # answers of a hop
FIRST_LEASE_ID = 250_784_918_798_336


def bodies(count: int) -> Mapping[TaskKind, Sequence[bytes]]:
    """Return as many bodies of each kind.

    Raises:
        UnableError: this process may not ping.
    """
    return {kind: _encoded(seen) for kind, seen in asyncio.run(_measured(count)).items()}


def _encoded(seen: Sequence[Measurement]) -> Sequence[bytes]:
    return [
        wire.encode_report_item(FIRST_LEASE_ID + number, measurement)
        for number, measurement in enumerate(seen)
    ]


async def _measured(count: int) -> dict[TaskKind, list[Measurement]]:
    seen: dict[TaskKind, list[Measurement]] = {kind: [] for kind in TaskKind}
    page = response("200 OK", b"x" * 5_000, server="bench", content_type="text/html")
    async with beacon() as names, http_server({"/": page}) as web:
        wanted: tuple[tuple[TaskKind, str, Mapping[str, Any]], ...] = (
            (TaskKind.DNS, NAME, {"server": names.endpoint}),
            (TaskKind.HTTP, f"http://127.0.0.1:{web.port}/", {}),
            (TaskKind.TCP, f"127.0.0.1:{web.port}", {}),
            (TaskKind.PING, "127.0.0.1", {"count": 10, "interval_ms": 10}),
        )
        for kind, target, options in wanted:
            specs = build_specs(kind, [target] * count, options)

            def emit(_: TaskSpec, measurement: Measurement, kind: TaskKind = kind) -> None:
                seen[kind].append(measurement)

            await measure_for_person(kind, specs, emit)
            failed = [one for one in seen[kind] if one.outcome is not Outcome.OK]
            if failed:
                raise UnableError(f"{kind} of {target}: {failed[0].error}")
    seen[TaskKind.TRACE] = [_traced(one, number) for number, one in enumerate(seen[TaskKind.PING])]
    return seen


def _traced(like: Measurement, number: int) -> Measurement:
    """Make a trace of HOPS hops, with the times and the environment of a measurement."""
    rng = random.Random(number)
    target = f"203.0.113.{number % 250}"
    hops = [
        hop(
            ttl,
            *(
                probe(f"198.51.{ttl}.{number % 4}", round(rng.uniform(ttl, 3 * ttl), 6), attempt)
                for attempt in range(PROBES)
            ),
            reached=ttl == HOPS,
        )
        for ttl in range(1, HOPS + 1)
    ]
    value = trace_value(target, *hops, sent=HOPS * PROBES, source="192.0.2.9")
    return structs.replace(like, observations=(Observation("trace", value),))


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a folder on a real disk, below build/."""
    build = Path(__file__).resolve().parent.parent / "build"
    build.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=build)
