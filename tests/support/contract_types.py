"""The contract's types as data: what must never change of them, and bodies that use every field.

The files in tests/golden/contract are what was promised. They only grow: a type keeps its fields,
with their types, units (which are in the names), defaults and requiredness, and every body that was
ever valid is read for ever.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct, inspect

import netsonde.control_plane

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "contract"
TYPES = FOLDER / "types.json"
BODIES = FOLDER / "bodies.json"
PROSE = ("title", "description")


def contract_types() -> Mapping[str, type[Struct]]:
    """Return the stable types that travel, by name."""
    named = {name: getattr(netsonde.control_plane, name) for name in netsonde.control_plane.__all__}
    return {
        name: one
        for name, one in sorted(named.items())
        if isinstance(one, type) and issubclass(one, Struct)
    }


def schemas() -> dict[str, Any]:
    """Return the schema of every stable type and of what they are made of, without its prose."""
    _, components = msgspec.json.schema_components(contract_types().values())
    plain = {name: _plain(schema) for name, schema in sorted(components.items())}
    return cast("dict[str, Any]", json.loads(json.dumps(plain)))


def _plain(schema: Any) -> Any:
    if isinstance(schema, dict):
        # A property may have the name of a word of prose: then it is a schema itself.
        return {
            key: _plain(value)
            for key, value in schema.items()
            if key not in PROSE or not isinstance(value, str)
        }
    return [_plain(each) for each in schema] if isinstance(schema, list) else schema


def broken(promised: Any, now: Any, path: str = "$") -> Iterator[str]:
    """Say what of a promised schema does not hold any more."""
    if isinstance(promised, dict) and isinstance(now, dict):
        for key, value in promised.items():
            if key not in now:
                yield f"{path}.{key} is gone"
            else:
                yield from _broken_part(key, value, now[key], f"{path}.{key}")
        for key in sorted(now.keys() - promised.keys() - {"anyOf", "enum"}):
            if "properties" not in path.rpartition(".")[2]:
                yield f"{path}.{key} is new: {now[key]!r}"
    elif promised != now:
        yield f"{path} was {promised!r} and is {now!r}"


def _broken_part(key: str, promised: Any, now: Any, path: str) -> Iterator[str]:
    if key in ("enum", "anyOf"):
        yield from (f"{path} lost {one!r}" for one in promised if one not in now)
    elif key == "required":
        yield from (f"{path}: {one} is required now" for one in now if one not in promised)
        yield from (f"{path}: {one} may be left out now" for one in promised if one not in now)
    elif key == "mapping":
        yield from (f"{path}.{one} is gone" for one in promised.keys() - now.keys())
    else:
        yield from broken(promised, now, path)


# ── bodies ──


def full(of: type[Struct]) -> Any:
    """Return a body of a type in which every field has a value that is not its default."""
    return _sample(inspect.type_info(of))


def _sample(kind: inspect.Type, default: Any = None) -> Any:
    """Return a value that is not the default."""
    match kind:
        case inspect.StructType():
            tag = {kind.tag_field: kind.tag} if kind.tag_field is not None else {}
            return tag | {
                each.encode_name: _sample(each.type, each.default) for each in kind.fields
            }
        case inspect.UnionType():
            some = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
            return _sample(some, default)
        case inspect.VarTupleType() | inspect.ListType():
            return [_sample(kind.item_type)]
        case inspect.DictType():
            return {"key": _sample(kind.value_type)}
        case inspect.Metadata():
            return _sample(kind.type, default)
        case _:
            return next(each for each in _scalars(kind) if each != default)


def _scalars(kind: inspect.Type) -> Sequence[Any]:
    """Return two values of a type."""
    match kind:
        case inspect.EnumType():
            values: Sequence[Any] = [each.value for each in kind.cls]
        case inspect.LiteralType():
            values = kind.values
        case inspect.BoolType():
            values = (True, False)
        case inspect.IntType():
            values = (max(kind.ge or 0, 7), max(kind.ge or 0, 7) + 1)
        case inspect.FloatType():
            least = max(kind.gt or 0.0, kind.ge or 0.0)
            values = (least + 0.5, least + 0.75)
        case inspect.StrType():
            values = ("x" * max(kind.min_length or 0, 3),)
        case inspect.AnyType():
            values = ({"some": ["thing", 1, None]},)
        case _:
            raise TypeError(f"{kind} is in no body yet")
    return values


def lost(body: Any, read: Any, path: str = "$") -> Iterator[str]:
    """Say what of a body is not in what was read of it."""
    if isinstance(body, dict) and isinstance(read, dict):
        for key, value in body.items():
            if key not in read:
                yield f"{path}.{key}"
            else:
                yield from lost(value, read[key], f"{path}.{key}")
    elif isinstance(body, list) and isinstance(read, list | tuple) and len(body) == len(read):
        for at, (each, mine) in enumerate(zip(body, read, strict=True)):
            yield from lost(each, mine, f"{path}[{at}]")
    elif body != read:
        yield path


def load(path: Path) -> Any:
    """Read a golden file."""
    return json.loads(path.read_text())


def save(path: Path, value: Any) -> None:
    """Write a golden file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
