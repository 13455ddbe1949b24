"""The schemas of the types that calls take and give."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from netsonde.model import ErrorEnvelope
from netsonde.server.openapi.calls import OPERATOR, Call

SCHEMAS = "#/components/schemas/"


class Types:
    """The schemas of every type that calls name; what operators send is closed to other fields."""

    def __init__(self, calls: Sequence[Call]) -> None:
        given: list[Any] = [ErrorEnvelope]
        taken: list[Any] = []
        for call in calls:
            about = call.about
            given += [one for one in (about.answer, about.answer_line, *about.also.values()) if one]
            (taken if call.listener == OPERATOR else given).extend(
                one for one in (about.takes, about.takes_line) if one is not None
            )
        self._given, self.components = _schemas(given)
        self._taken, closed = _schemas(taken)
        closed = {name: _closed(schema) for name, schema in closed.items()}
        renamed = {
            f"{SCHEMAS}{name}": f"{SCHEMAS}{name}.given"
            for name, schema in closed.items()
            if self.components.get(name, schema) != schema
        }
        self._taken = {one: _renamed(schema, renamed) for one, schema in self._taken.items()}
        for name, schema in closed.items():
            own = renamed.get(f"{SCHEMAS}{name}", f"{SCHEMAS}{name}").removeprefix(SCHEMAS)
            self.components[own] = _renamed(schema, renamed)

    def given(self, type_: Any) -> Mapping[str, Any]:
        """Return the schema of an answer."""
        schema: Mapping[str, Any] = self._given[type_]
        return schema

    def taken(self, call: Call, type_: Any) -> Mapping[str, Any]:
        """Return the schema of a body that is sent."""
        schema: Mapping[str, Any] = (self._taken if call.listener == OPERATOR else self._given)[
            type_
        ]
        return schema


def _schemas(types: Sequence[Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    schemas, components = msgspec.json.schema_components(types, ref_template=SCHEMAS + "{name}")
    return dict(zip(types, schemas, strict=True)), dict(components)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    closed = dict(schema)
    if "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """Return a schema with its references renamed."""
    if isinstance(schema, Mapping):
        return {
            key: names.get(value, value)
            if key == "$ref" and isinstance(value, str)
            else _renamed(value, names)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_renamed(one, names) for one in schema]
    return schema
