"""What the agent's parts share in tests: a manual clock, a lease table and a spool."""

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from netsonde.clock import ManualClock
from netsonde.leases import LeaseTable
from netsonde.spool import Spool
from support.spools import inline_spools, open_spool


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def leases() -> LeaseTable:
    return LeaseTable(Random(7))


@pytest_asyncio.fixture
async def spool(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Spool]:
    inline_spools(monkeypatch)
    opened = await open_spool(tmp_path, clock)
    yield opened
    await opened.close()
