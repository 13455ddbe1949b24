"""Lines on the terminal of standard output that are redrawn in place."""

import os
import sys
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Screen:
    """Draws lines below all that has been written to a terminal."""

    def __init__(self, console: Console) -> None:
        self.is_wanted = True
        self._console = console
        self._live: Live | None = None

    @classmethod
    def of_stdout(cls) -> Self | None:
        """Return the screen of standard output, None where that is no terminal."""
        if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            return None
        return cls(Console(file=sys.stdout))

    @property
    def height(self) -> int:
        """How many lines there is room for."""
        return self._console.size.height - 1

    def show(self, text: str) -> None:
        """Draw lines, with their colours, in place of those that were drawn before."""
        if not self.is_wanted:
            return
        try:
            self._drawn().update(Text.from_ansi(text, no_wrap=True, overflow="crop"), refresh=True)
        except OSError:
            self.is_wanted = False  # the terminal has gone

    def clear(self) -> None:
        """Erase what is drawn, before something else is written."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()
        except OSError:
            self.is_wanted = False

    def _drawn(self) -> Live:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,  # who writes there clears first
                redirect_stderr=False,
            )
            self._live.start()
        return self._live
