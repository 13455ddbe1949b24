"""What Schemathesis does with every request before it leaves; loaded by it, in its process.

Without this most requests would be of agents and things that do not exist, and some would be held
for a minute.
"""

import atexit
import os
from pathlib import Path
from typing import Any

import schemathesis

from netsonde.server.config import CLAIM_WAIT_MAX_MS as WAIT_MAX_MS

AGENT_ID = int(os.environ["NETSONDE_TRIAL_AGENT"])
COUNTED = Path(os.environ["NETSONDE_TRIAL_COUNT"])
THINGS = 8  # ids of one kind that are asked for
DRAWN = 1_000  # an id above this was drawn, and none that a call before has answered
# What must have been answered before, which a schema cannot say: the cursor is after the first of
# whatever it is.
KNOWN = {"cursor": "YzE6MQ", "agent": str(AGENT_ID)}
_requests = 0


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Name the agent that asks, and things that may be there; wait for nothing."""
    global _requests  # noqa: PLW0603 (the process is one trial)
    _requests += 1
    if case.meta is not None and case.meta.generation.mode.is_positive:
        case.body = _with_integers(case.body)
    body = case.body
    if isinstance(body, dict):
        if type(body.get("agent_id")) is int:
            body["agent_id"] = AGENT_ID
        if type(body.get("wait_ms")) is int and 0 < body["wait_ms"] <= WAIT_MAX_MS:
            body["wait_ms"] = 0
    query = case.query
    for name, known in KNOWN.items():
        if query and query.get(name):
            query[name] = known
    wait_ms = str(query.get("wait_ms", "")) if query else ""
    if wait_ms.isascii() and wait_ms.isdecimal() and int(wait_ms[:20]) <= WAIT_MAX_MS:
        query["wait_ms"] = 0
    path = case.path_parameters
    if path and type(path.get("id")) is int and path["id"] > DRAWN:
        path["id"] = path["id"] % THINGS + 1


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
    COUNTED.write_text(str(_requests), "ascii")
