"""Name look-ups by the C library.

getaddrinfo(3) cannot be cancelled and takes as long as resolv.conf says, a minute if no name server
answers.
"""

from collections.abc import Sequence
from functools import partial
from socket import SOCK_STREAM, getaddrinfo
from typing import Any

from netsonde.probe.asides import Asides

LOOKUPS_MAX = 128  # at once, given up ones included; a thread that waits takes about 50 KiB

Entry = tuple[Any, ...]  # what getaddrinfo returns, a socket address last


class SystemLookUp:
    """Looks names up with the system's resolver. Call it on one event loop only."""

    def __init__(self) -> None:
        self._asides = Asides("netsonde-lookup", LOOKUPS_MAX)

    async def __call__(self, name: str, family: int) -> Sequence[Entry]:
        """Return getaddrinfo's entries for name.

        Raises:
            OSError: it has none, or there is no thread for it.
        """
        return await self._asides.call(
            partial(getaddrinfo, name, None, family=family, type=SOCK_STREAM)
        )
