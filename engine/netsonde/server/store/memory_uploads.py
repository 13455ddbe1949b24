"""Uploads in memory."""

from collections.abc import Mapping

from netsonde.server.store.uploads import UploadedLine


class MemoryUploads:
    """Verbs over the lines that were uploaded under an Idempotency-Key."""

    def __init__(self) -> None:
        self._uploads: dict[str, dict[int, UploadedLine]] = {}
        self._used_ns: dict[str, int] = {}

    def uploaded(self, key: str, lines: range) -> dict[int, UploadedLine]:
        """Return those of these lines that have become tasks."""
        known = self._uploads.get(key, {})
        return {number: known[number] for number in lines if number in known}

    def keep_uploaded(self, key: str, lines: Mapping[int, UploadedLine], now_ns: int) -> None:
        """Keep what lines have become."""
        self._uploads.setdefault(key, {}).update(lines)
        self._used_ns[key] = now_ns

    def forget_uploads(self, before_ns: int, limit: int) -> int:
        """Drop lines under keys not used since an instant."""
        dropped = 0
        for key in [key for key, used_ns in self._used_ns.items() if used_ns < before_ns]:
            lines = self._uploads[key]
            for number in list(lines)[: limit - dropped]:
                del lines[number]
                dropped += 1
            if not lines:
                del self._uploads[key], self._used_ns[key]
        return dropped
