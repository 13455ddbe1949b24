"""The contract's types keep their promises: nothing that was ever valid means something else.

What was added is written down by

    NETSONDE_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/acceptance/test_contract_types.py

which adds, and never changes what is there.
"""

import os
import re
from typing import Any

import msgspec
import pytest

from netsonde import wire
from support.contract_types import (
    BODIES,
    TYPES,
    broken,
    contract_types,
    full,
    load,
    lost,
    save,
    schemas,
)

IS_WRITING = os.environ.get("NETSONDE_WRITE_GOLDEN") == "1"


def promises() -> dict[str, Any]:
    return load(TYPES) if TYPES.exists() else {}


def bodies() -> dict[str, list[Any]]:
    return load(BODIES) if BODIES.exists() else {}


def test_types_keep_their_promises() -> None:
    now = schemas()
    found = [
        text for name, schema in promises().items() for text in broken(schema, now.get(name), name)
    ]

    assert found == []


def test_what_is_promised_is_written_down() -> None:
    now = schemas()
    if IS_WRITING and not any(
        [*broken(schema, now.get(name), name)] for name, schema in promises().items()
    ):
        save(TYPES, now)

    assert promises() == now, "write what is new down (see above) when it is meant for ever"


@pytest.mark.parametrize(
    ("name", "body"), [(name, body) for name, each in bodies().items() for body in each]
)
def test_a_body_that_was_valid_is_read_for_ever(name: str, body: Any) -> None:
    read = msgspec.json.decode(wire.encode(body), type=contract_types()[name])

    assert [*lost(body, msgspec.to_builtins(read))] == []


def test_every_field_is_in_a_body() -> None:
    kept = bodies()
    for name, one in contract_types().items():
        body = full(one)
        if IS_WRITING and body not in kept.setdefault(name, []):
            kept[name].append(body)
    if IS_WRITING:
        save(BODIES, kept)

    assert {name: full(one) in kept.get(name, []) for name, one in contract_types().items()} == (
        dict.fromkeys(contract_types(), True)
    )


# ── that it would be found ──

PROMISED = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "b"]},
        "wait_ms": {"type": "integer", "default": 5},
        "spec": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["kind"],
}


def changed(**properties: Any) -> dict[str, Any]:
    return {**PROMISED, "properties": {**PROMISED["properties"], **properties}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (changed(wait_ms={"type": "number", "default": 5}), "was 'integer' and is 'number'"),
        (changed(wait_ms={"type": "integer", "default": 6}), "was 5 and is 6"),
        (changed(wait_ms={"type": "integer"}), r"wait_ms\.default is gone"),
        (changed(wait_ms={"type": "integer", "default": 5, "minimum": 1}), "minimum is new"),
        (changed(kind={"enum": ["a"]}), "lost 'b'"),
        (changed(spec={"anyOf": [{"type": "string"}], "default": None}), "lost"),
        ({**PROMISED, "required": ["kind", "wait_ms"]}, "wait_ms is required now"),
        ({**PROMISED, "required": []}, "kind may be left out now"),
        ({**PROMISED, "properties": {"kind": {"enum": ["a", "b"]}}}, "wait_ms is gone"),
        (None, "and is None"),
    ],
)
def test_a_broken_promise_is_found(now: Any, what: str) -> None:
    found = [*broken(PROMISED, now)]

    assert len(found) >= 1
    assert any(re.search(what, text) for text in found)


@pytest.mark.parametrize(
    "now",
    [
        PROMISED,
        changed(more={"type": "string", "default": ""}),
        changed(kind={"enum": ["a", "b", "c"]}),
        changed(spec={"anyOf": [{"type": "integer"}, {"type": "null"}, {"type": "string"}],
                      "default": None}),
    ],
)  # fmt: skip
def test_what_is_added_breaks_none(now: Any) -> None:
    assert [*broken(PROMISED, now)] == []
