"""The store's SQL, read once from the files in sql/.

sql/schema has a script per version, `NNN_what.sql`: what the version adds to the one before it.
sql/queries has the statements by name.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_MARK = "-- name: "


@cache
def schema() -> Mapping[int, str]:
    """Return the scripts that make an empty database ours, by version, in their order."""
    scripts = {int(file.name.partition("_")[0]): file.read_text("utf-8") for file in _in("schema")}
    return dict(sorted(scripts.items()))


@cache
def named_queries() -> Mapping[str, str]:
    """Return every statement by its name.

    Raises:
        ValueError: two have the same.
    """
    queries: dict[str, str] = {}
    for file in _in("queries"):
        for block in file.read_text("utf-8").split(_MARK)[1:]:
            name, _, statement = block.partition("\n")
            if name.strip() in queries:
                raise ValueError(f"two statements are named {name.strip()}")
            queries[name.strip()] = statement.strip().removesuffix(";")
    return queries


def _in(folder: str) -> Iterator[Traversable]:
    directory = resources.files("netsonde.server.store").joinpath("sql", folder)
    return (file for file in directory.iterdir() if file.name.endswith(".sql"))
