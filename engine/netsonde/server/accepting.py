"""What a client says it takes (RFC 9110, 12.5.1): an answer it cannot read is no answer."""

from collections.abc import Collection

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.about import JSON_TYPE, About

ANYTHING = ("", "*/*", JSON_TYPE, f"{wire.NDJSON}, {JSON_TYPE}")  # what our clients say, and most
RANGES_MAX = 64


def require_acceptable(accept: str, about: About | None) -> None:
    """Pass when a call answers with something that its `Accept` names.

    Raises:
        RequestError: ERR_NOT_ACCEPTABLE.
    """
    if accept in ANYTHING:
        return
    offered = [JSON_TYPE if about is None else about.media_type.partition(";")[0]]
    if about is not None and about.answer_line is not None:
        offered.append(wire.NDJSON)
    if not is_acceptable(accept, offered):
        raise RequestError(
            ErrorCode.NOT_ACCEPTABLE,
            f"this call answers with {' or '.join(offered)}, not with {accept[:100]}",
        )


def is_acceptable(accept: str, offered: Collection[str]) -> bool:
    """Whether one of the types is wanted; the range that fits a type best decides of it."""
    ranges = [_range(text) for text in accept.split(",")[:RANGES_MAX]]
    for media_type in offered:
        fits = [
            (len(wanted), is_wanted) for wanted, is_wanted in ranges if _covers(wanted, media_type)
        ]
        if fits and max(fits)[1]:
            return True
    return False


def _range(text: str) -> tuple[str, bool]:
    """Return a media range, and whether it is wanted at all."""
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    weights = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
    return media_type, not any(weight.rstrip("0") in ("", "0.", ".") for weight in weights)


def _covers(wanted: str, media_type: str) -> bool:
    if wanted == "*/*":
        return True
    if wanted.endswith("/*"):
        return media_type.startswith(wanted[:-1])
    return wanted == media_type
