"""Signed configurations in SQLite."""

from netsonde.server.store.configs import ConfigReportRow, ConfigRow
from netsonde.server.store.sqlite_tasks import Database

NO_REVISION = 2**63 - 1  # above all that there can be


class SqliteConfigs:
    """Verbs over configurations."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def save_config(self, config: ConfigRow) -> None:
        """Insert or replace a revision."""
        self._db.run(
            "save_config",
            config.revision,
            config.digest,
            config.envelope,
            config.scope,
            config.published_ns,
            config.expires_ns,
        )

    def config(self, revision: int) -> ConfigRow | None:
        """Return one revision."""
        row = self._db.run("config", revision).fetchone()
        return None if row is None else _config(*row)

    def configs(self, before: int | None, limit: int) -> list[ConfigRow]:
        """Return revisions, the greatest first, those below `before`."""
        bound = NO_REVISION if before is None else before
        return [_config(*row) for row in self._db.run("configs", bound, limit).fetchall()]

    def delete_config(self, revision: int) -> None:
        """Remove a revision and what was said of it."""
        self._db.run("delete_config", revision)
        self._db.run("delete_config_reports", revision)

    def save_config_report(self, report: ConfigReportRow) -> None:
        """Keep what an agent says of a revision, in place of what it said before."""
        self._db.run(
            "save_config_report",
            report.revision,
            report.agent_id,
            report.status,
            report.reported_ns,
            report.document,
        )

    def config_reports(self, revision: int) -> list[ConfigReportRow]:
        """Return what agents said of a revision, by agent."""
        rows = self._db.run("config_reports", revision).fetchall()
        return [
            ConfigReportRow(
                revision=revision,
                agent_id=agent_id,
                status=status,
                reported_ns=reported_ns,
                document=document,
            )
            for agent_id, status, reported_ns, document in rows
        ]


def _config(
    revision: int, digest: str, envelope: bytes, scope: bytes, published_ns: int, expires_ns: int
) -> ConfigRow:
    return ConfigRow(
        revision=revision,
        digest=digest,
        envelope=envelope,
        scope=scope,
        published_ns=published_ns,
        expires_ns=expires_ns,
    )
