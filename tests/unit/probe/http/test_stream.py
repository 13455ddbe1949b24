"""Streams of HTTP checks, over a peer in memory."""

import asyncio
import socket

import pytest

from netsonde.probe.http.stream import CHUNK_BYTES, TURN_BYTES, SocketStream


async def test_a_peer_that_is_never_slow_leaves_the_loop_its_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def at_once(_: socket.socket, size: int) -> bytes:
        return bytes(size)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "sock_recv", at_once)
    turns: list[int] = []
    received = 0

    with socket.socket() as sock:
        stream = SocketStream(sock)
        loop.call_soon(lambda: turns.append(received))
        while received < 100 * CHUNK_BYTES and not turns:
            received += len(await stream.receive())

    assert turns
    assert turns[0] <= TURN_BYTES
