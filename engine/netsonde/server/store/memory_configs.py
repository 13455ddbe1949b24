"""Signed configurations in memory."""

from netsonde.server.store.configs import ConfigReportRow, ConfigRow


class MemoryConfigs:
    """Verbs over configurations."""

    def __init__(self) -> None:
        self._configs: dict[int, ConfigRow] = {}
        self._config_reports: dict[tuple[int, int], ConfigReportRow] = {}

    def save_config(self, config: ConfigRow) -> None:
        """Insert or replace a revision."""
        self._configs[config.revision] = config

    def config(self, revision: int) -> ConfigRow | None:
        """Return one revision."""
        return self._configs.get(revision)

    def configs(self, before: int | None, limit: int) -> list[ConfigRow]:
        """Return revisions, the greatest first, those below `before`."""
        revisions = sorted(self._configs, reverse=True)
        chosen = [one for one in revisions if before is None or one < before]
        return [self._configs[one] for one in chosen[:limit]]

    def delete_config(self, revision: int) -> None:
        """Remove a revision and what was said of it."""
        self._configs.pop(revision, None)
        for key in [key for key in self._config_reports if key[0] == revision]:
            del self._config_reports[key]

    def save_config_report(self, report: ConfigReportRow) -> None:
        """Keep what an agent says of a revision, in place of what it said before."""
        self._config_reports[report.revision, report.agent_id] = report

    def config_reports(self, revision: int) -> list[ConfigReportRow]:
        """Return what agents said of a revision, by agent."""
        keys = sorted(key for key in self._config_reports if key[0] == revision)
        return [self._config_reports[key] for key in keys]
