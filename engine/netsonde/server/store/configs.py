"""Signed configurations, and what agents say of them, as a store keeps them."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRow:
    """One published revision: its envelope as it was given, and what is read from it to sort it."""

    revision: int
    digest: str
    envelope: bytes
    scope: bytes
    published_ns: int
    expires_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReportRow:
    """What one agent last said of one revision; `document` is its own words."""

    revision: int
    agent_id: int
    status: str
    reported_ns: int
    document: bytes = b"{}"


class ConfigStore(Protocol):
    """Verbs over configurations."""

    def save_config(self, config: ConfigRow) -> None:
        """Insert or replace a revision."""
        ...

    def config(self, revision: int) -> ConfigRow | None:
        """Return one revision."""
        ...

    def configs(self, before: int | None, limit: int) -> list[ConfigRow]:
        """Return revisions, the greatest first, those below `before`."""
        ...

    def delete_config(self, revision: int) -> None:
        """Remove a revision and what was said of it."""
        ...

    def save_config_report(self, report: ConfigReportRow) -> None:
        """Keep what an agent says of a revision, in place of what it said before."""
        ...

    def config_reports(self, revision: int) -> list[ConfigReportRow]:
        """Return what agents said of a revision, by agent."""
        ...
