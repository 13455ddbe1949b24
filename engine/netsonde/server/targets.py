"""Targets that no agent may measure, whatever its settings: refused before they are tasks.

An agent judges every address itself, after resolution (`netsonde.policy`); this only spares an
operator a check whose every result would be `rejected`. What another agent may measure is not
known here.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from netsonde.errors import ErrorCode, RequestError, TargetDeniedError
from netsonde.model import TARGET_FIELDS, DnsSpec, HttpSpec, TaskKind, TaskSpec
from netsonde.policy import TargetPolicy

_ANYBODY = TargetPolicy.person()  # allows what some agent's settings can


def require_measurable(spec: TaskSpec, field: str | None = None) -> None:
    """Pass when some agent may measure a spec; `field` names its target in the request.

    Raises:
        RequestError: ERR_TARGET_DENIED, an address of it is open to nobody.
    """
    for own, host in _hosts(spec):
        try:
            _ANYBODY.check(host)
        except TargetDeniedError as error:
            path = f"spec.{own}" if field is None or own == "server" else field
            message = f"{own}: {error}"
            raise RequestError(
                ErrorCode.TARGET_DENIED, message, violations=((f"$.{path}", message),)
            ) from error


def _hosts(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    """Yield the addresses that a spec names outright; names are for the agents to look up."""
    if isinstance(spec, DnsSpec):
        field, text = "server", spec.server or ""
        if text.count(":") == 1:
            text = text.partition(":")[0]
        elif text.startswith("["):
            text = text[1:].partition("]")[0]
    elif isinstance(spec, HttpSpec):
        field, text = TARGET_FIELDS[TaskKind.HTTP], _host_of(spec.url)
    else:
        field, text = "host", spec.host.removeprefix("[").removesuffix("]")
    if _is_address(text):
        yield field, text


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that hold no address; the agent says so
        return ""


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
