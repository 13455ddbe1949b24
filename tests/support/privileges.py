"""What this host lets the tests do, and the sentence that says why not."""

import functools
import socket
import subprocess
import sys


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
