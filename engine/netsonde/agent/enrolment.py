"""The token that an agent enrols with: a setting, or a file that is read at every attempt."""

import logging
from pathlib import Path

from netsonde.agent.config import AgentConfig
from netsonde.agent.settings import TOKEN_MAX_CHARS

logger = logging.getLogger("netsonde.agent")


class EnrolmentToken:
    """Reads the token anew each time, so that a new one in the file needs no restart.

    A file that is missing or wrong is no error: an agent that is known already needs no token.
    What it held last is then gone on with, and without that the setting's own text.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._path = config.enrolment_token_file
        self._token = config.enrolment_token
        self._complaint: str | None = None

    def read(self) -> str | None:
        """Return the token, None when there is none."""
        if self._path is None:
            return self._token
        try:
            self._token = _read(self._path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._complain(f"the enrolment token file {self._path} cannot be used: {reason}")
        else:
            self._complaint = None
        return self._token

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            logger.warning(
                "%s; only an agent that is new to its control plane needs it",
                text,
                extra={"action": "enrolment_token_unreadable"},
            )
        self._complaint = text


def _read(path: Path) -> str:
    with path.open("rb") as file:
        body = file.read(TOKEN_MAX_CHARS + 2)
    try:
        text = body.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""  # the decoder's words would quote the token
    if not text or len(text) > TOKEN_MAX_CHARS or not text.isprintable() or " " in text:
        raise ValueError("it must hold one token and nothing else")
    return text
