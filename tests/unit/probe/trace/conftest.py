"""The bench of the trace prober's tests: no packets, a manual clock."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.trace_bench import TraceBench


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[TraceBench]:
    bench = TraceBench()
    yield bench
    await bench.tracer.close()
    assert all(engine.closed for engine in bench.opened)
