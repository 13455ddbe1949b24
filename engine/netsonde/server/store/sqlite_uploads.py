"""Uploads in SQLite."""

from collections.abc import Mapping

from netsonde.server.store.sqlite_tasks import Database
from netsonde.server.store.uploads import UploadedLine


class SqliteUploads:
    """Verbs over the lines that were uploaded under an Idempotency-Key."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def uploaded(self, key: str, lines: range) -> dict[int, UploadedLine]:
        """Return those of these lines that have become tasks."""
        rows = self._db.run("uploaded", key, lines.start, lines.stop).fetchall()
        return {number: UploadedLine(digest, task_id) for number, digest, task_id in rows}

    def keep_uploaded(self, key: str, lines: Mapping[int, UploadedLine], now_ns: int) -> None:
        """Keep what lines have become."""
        self._db.run("use_upload", key, now_ns)
        upload_id = self._db.run("upload_id", key).fetchone()[0]
        self._db.insert(
            "add_uploaded",
            [(upload_id, number, line.digest, line.task_id) for number, line in lines.items()],
        )

    def forget_uploads(self, before_ns: int, limit: int) -> int:
        """Drop lines under keys not used since an instant."""
        dropped = self._db.run("forget_uploaded", before_ns, limit).rowcount
        self._db.run("forget_uploads", before_ns)
        return dropped
