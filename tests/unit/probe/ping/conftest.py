"""The bench of the ping tests: no packets, a manual clock."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.ping_bench import PingBench


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[PingBench]:
    bench = PingBench()
    yield bench
    await bench.prober.close()
    assert all(engine.closed for engine in bench.opened)
