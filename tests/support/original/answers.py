"""What the answers of both original servers have in common."""

from email.utils import formatdate

from netsonde.clock import NS_PER_S, Clock

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


def date(clock: Clock) -> str:
    """Return the Date header: the server's wall clock, cut to whole seconds."""
    return formatdate(clock.realtime_ns() // NS_PER_S, usegmt=True)
