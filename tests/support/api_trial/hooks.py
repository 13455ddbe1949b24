"""What Schemathesis does with every request before it leaves; loaded by it, in its process.

Without this most requests would be of agents, leases and things that do not exist, and some would
be held for a minute.
"""

import atexit
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.generation.meta import TestPhase

from netsonde.server.config import CLAIM_WAIT_MAX_MS as WAIT_MAX_MS
from netsonde.server.queries import RESULT_CURSOR, encode_cursor

AGENT_ID = int(os.environ["NETSONDE_TRIAL_AGENT"])
COUNTED = Path(os.environ["NETSONDE_TRIAL_COUNT"])
THINGS = 8  # ids of one kind that are asked for
DRAWN = 1_000  # an id above this was drawn, and none that a call before has answered
CLAIM, REPORT = "/v1/agents/claim", "/v1/agents/report"
KEY = "Idempotency-Key"
LEASES = 64  # the latest ones granted, which other calls name
# What must have been answered before, which a schema cannot say.
FIRST_RESULT = encode_cursor(1, RESULT_CURSOR)
FIRST_OF_OTHERS = encode_cursor(1)
TOLD_EVERY = 50  # requests
_granted: deque[int] = deque(maxlen=LEASES)
_requests = 0


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Name the agent that asks, and things that may be there; wait for nothing."""
    global _requests  # noqa: PLW0603 (the process is one trial)
    _requests += 1
    if _requests % TOLD_EVERY == 0:
        tell()
    if case.meta is not None and case.meta.generation.mode.is_positive:
        case.body = _with_integers(case.body)
        _name_leases(case.body, case.operation.path)
        _name_key(case)
    if isinstance(case.body, dict):
        _name_agent(case.body)
    if case.query:
        _name_known(case.query, case.operation.path)
    path = case.path_parameters
    if path and type(path.get("id")) is int and path["id"] > DRAWN:
        path["id"] = path["id"] % THINGS + 1


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Remember the leases that were granted."""
    if case.operation.path == CLAIM and response.status_code == 200:
        _granted.extend(lease["lease_id"] for lease in response.json()["leases"])


def _name_agent(body: dict[str, Any]) -> None:
    if type(body.get("agent_id")) is int:
        body["agent_id"] = AGENT_ID
    if type(body.get("wait_ms")) is int and 0 < body["wait_ms"] <= WAIT_MAX_MS:
        body["wait_ms"] = 0


def _name_leases(body: Any, path: str) -> None:
    """Name leases that were granted, the latest first."""
    if not isinstance(body, dict) or not _granted:
        return
    leases: Iterator[int] = reversed([*_granted])
    named = body.get("lease_ids")
    if isinstance(named, list):
        for place, lease_id in zip(range(len(named)), leases, strict=False):
            named[place] = lease_id
    if path == REPORT:
        for item, lease_id in zip((*body["completed"], *body["cancelled"]), leases, strict=False):
            item["lease_id"] = lease_id


def _name_key(case: Any) -> None:
    """Use a key once in a sequence: what it was drawn for before may have been deleted since."""
    if case.meta.phase.name is TestPhase.STATEFUL and KEY in (case.headers or {}):
        case.headers[KEY] = f"{COUNTED.stem}-{_requests}"


def _name_known(query: dict[str, Any], path: str) -> None:
    cursor = FIRST_RESULT if path == "/v1/results" else FIRST_OF_OTHERS
    for name, known in (("cursor", cursor), ("agent", str(AGENT_ID))):
        if query.get(name):
            query[name] = known
    wait_ms = str(query.get("wait_ms", ""))
    if wait_ms.isascii() and wait_ms.isdecimal() and int(wait_ms[:20]) <= WAIT_MAX_MS:
        query["wait_ms"] = 0


def _with_integers(value: Any) -> Any:
    """Write integers without a point: JSON Schema takes 1.0 for one, this API does not."""
    if isinstance(value, dict):
        return {name: _with_integers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_integers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@atexit.register
def tell() -> None:
    """Leave the number of requests to who started the trial."""
    being_written = COUNTED.with_suffix(".new")
    being_written.write_text(str(_requests), "ascii")
    being_written.replace(COUNTED)  # whole at once
