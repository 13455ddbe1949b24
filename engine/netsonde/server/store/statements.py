"""The store's SQL, read once from the files beside this module."""

from collections.abc import Mapping
from importlib import resources

_MARK = "-- name: "


def schema() -> str:
    """Return the script that makes an empty database ours."""
    return _read("schema.sql")


def named_queries() -> Mapping[str, str]:
    """Return every statement of queries.sql by its name."""
    queries: dict[str, str] = {}
    for block in _read("queries.sql").split(_MARK)[1:]:
        name, _, statement = block.partition("\n")
        queries[name.strip()] = statement.strip().removesuffix(";")
    return queries


def _read(name: str) -> str:
    return resources.files("netsonde.server.store").joinpath(name).read_text("utf-8")
