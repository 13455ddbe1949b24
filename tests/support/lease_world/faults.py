"""What goes wrong in a world, by name; how often each happened is counted."""

from enum import StrEnum


class Fault(StrEnum):
    """One kind of trouble."""

    REQUEST_LOST = "request lost"
    RESPONSE_LOST = "response lost"
    REQUEST_DOUBLED = "request doubled"  # the server sees it twice
    RESPONSE_CUT = "response cut"  # and looks complete
    RESPONSE_GARBLED = "response garbled"  # a proxy's page with status 200
    PROXY_ERROR = "proxy error"  # 503 that is not the server's
    SLOW = "slow"  # so that others overtake it
    PARTITION = "partition"
    SERVER_CRASH = "server crash"
    SERVER_CRASH_BEFORE_COMMIT = "server crash before a commit"
    SERVER_CRASH_AFTER_COMMIT = "server crash after a commit"  # whose answer is lost
    SERVER_DISK_FULL = "server disk full"
    SERVER_STALL = "server stall"
    SERVER_CLOCK_STEP = "server clock step"
    AGENT_CRASH = "agent crash"
    AGENT_CRASH_AFTER_SPOOLING = "agent crash after spooling"
    AGENT_CRASH_AFTER_ANSWER = "agent crash after an answer"  # before it acted on it
    AGENT_TORN_WRITE = "agent crash in a write"  # whose bytes reached the disk in part
    AGENT_DISK_FULL = "agent disk full"
    AGENT_DRAIN = "agent drained"
    AGENT_SUSPEND = "agent suspended"
    AGENT_CLOCK_STEP = "agent clock step"
