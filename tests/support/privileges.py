"""What this host lets the tests do, and the sentence that says why not."""

import ctypes
import functools
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

CAP_NET_RAW = 13  # linux/capability.h
CAPABILITY_VERSION_3 = 0x20080522

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def raw_socket_refusal() -> str | None:
    """Return why raw ICMP sockets cannot be opened here, or None when they can."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    except PermissionError:
        return "needs CAP_NET_RAW: run scripts/test, as root or where user namespaces are allowed"
    return None


@functools.cache
def netns_refusal() -> str | None:
    """Return why network namespaces cannot be made here, or None when they can."""
    unshare = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x40000000) != 0)"
    if subprocess.run([sys.executable, "-c", unshare], check=False).returncode != 0:
        return "needs to make network namespaces: run as root or where user namespaces are allowed"
    return None


@functools.cache
def user_change_refusal() -> str | None:
    """Return why a program cannot stop being root here, or None when it can."""
    change = "import os; os.setgroups([65534]); os.setgid(65534); os.setuid(65534)"
    done = subprocess.run([sys.executable, "-c", change], check=False, stderr=subprocess.DEVNULL)
    if done.returncode != 0:
        return "needs another user to become: run as root, in no user namespace of one user"
    return None


def with_capabilities(kept: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call function in a thread that has the capabilities of the bit mask kept and no others."""
    done: list[R | BaseException] = []

    def drop_and_call() -> None:
        try:
            _keep_capabilities(kept)
            done.append(function(*args, **kwargs))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=drop_and_call)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def _keep_capabilities(kept: int) -> None:
    """Drop this thread's other capabilities for good (capset(2) is the thread's alone)."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    sets = struct.pack("=6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable
    if ctypes.CDLL(None, use_errno=True).capset(header, sets) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")
