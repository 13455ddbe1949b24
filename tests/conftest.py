"""What every test gets: uvloop, and a reason when the host withholds a privilege."""

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import settings

from support.privileges import netns_refusal, raw_socket_refusal

# Machines are shared: a slow example is not a finding. CI repeats the same examples every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run async tests on the loop that production runs on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this host does not permit, saying why."""
    refusals = {"raw": raw_socket_refusal(), "netns": netns_refusal()}
    for item in items:
        for marker, refusal in refusals.items():
            if refusal is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=refusal))
