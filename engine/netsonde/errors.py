"""Every way netsonde fails, in one taxonomy, and the contract's table of codes.

The split is by whose fault it is and what the caller does next. A measurement's outcome is never
here: no reply, refused, NXDOMAIN are values in `netsonde.model`. The docstring of a class is its
default message.
"""

import errno
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple


class NetsondeError(Exception):
    """Something in netsonde failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class ConfigError(NetsondeError, ValueError):
    """A setting is wrong; the message names it and what is allowed."""


class RefusalReason(StrEnum):
    """Why a signed configuration was not taken; append-only, as the codes are."""

    MALFORMED = "malformed"  # not an envelope
    OVERSIZE = "oversize"
    WRONG_TYPE = "wrong_type"  # signed, perhaps, but as something else
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    INVALID = "invalid"  # rightly signed, and wrong all the same
    REPLAYED = "replayed"
    EXPIRED = "expired"
    OUT_OF_SCOPE = "out_of_scope"
    CRASHED = "crashed"
    APPLY_FAILED = "apply_failed"
    NOT_KEPT = "not_kept"  # the disk would not have it


class ConfigRefused(ConfigError):
    """A signed configuration was not taken; `revision` is None while none of it may be read."""

    def __init__(self, reason: RefusalReason, message: str, revision: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.revision = revision


class PrivilegeError(NetsondeError, PermissionError):
    """This process may not open the socket it needs; the message says how to grant it."""


class SendError(NetsondeError):
    """The kernel refused a packet; `errno` says why and `operation` what was tried."""

    def __init__(self, operation: str, errno: int, text: str) -> None:
        super().__init__(f"{operation}: {text}")
        self.operation = operation
        self.errno = errno


class RouteError(NetsondeError):
    """A packet cannot leave this host: no route or no neighbour; the message says what to do."""


class ResolveError(NetsondeError):
    """A host name could not be turned into an address."""


class TargetDeniedError(NetsondeError):
    """The target policy forbids this address; the message names the rule that would allow it."""


class StorageError(NetsondeError):
    """A file or database netsonde keeps is unusable; the message names the path and the cause."""


class SpoolFull(StorageError):
    """The spool reached its limit; results wait in it until the control plane takes them."""


class ErrorCode(StrEnum):
    """Codes of the error envelope; append-only (docs/control-plane-api.md)."""

    VALIDATION = "ERR_VALIDATION"
    MALFORMED_JSON = "ERR_MALFORMED_JSON"
    UNAUTHORIZED = "ERR_UNAUTHORIZED"
    TOKEN_EXPIRED = "ERR_TOKEN_EXPIRED"  # noqa: S105 (a code, not a token)
    ENROLMENT_REQUIRED = "ERR_ENROLMENT_REQUIRED"
    FORBIDDEN = "ERR_FORBIDDEN"
    NOT_FOUND = "ERR_NOT_FOUND"
    METHOD_NOT_ALLOWED = "ERR_METHOD_NOT_ALLOWED"
    NOT_ACCEPTABLE = "ERR_NOT_ACCEPTABLE"
    TIMEOUT = "ERR_TIMEOUT"
    CONFLICT = "ERR_CONFLICT"
    CURSOR_EXPIRED = "ERR_CURSOR_EXPIRED"
    TOO_LARGE = "ERR_TOO_LARGE"
    MEDIA_TYPE = "ERR_MEDIA_TYPE"
    TARGET_DENIED = "ERR_TARGET_DENIED"
    CONFIG_INVALID = "ERR_CONFIG_INVALID"
    RATE_LIMITED = "ERR_RATE_LIMITED"
    BACKEND = "ERR_BACKEND"
    UPSTREAM = "ERR_UPSTREAM"
    UNAVAILABLE = "ERR_UNAVAILABLE"
    DEADLINE = "ERR_DEADLINE"
    STORAGE_FULL = "ERR_STORAGE_FULL"
    # Per item only: they never travel as an HTTP status.
    LEASE_FENCED = "ERR_LEASE_FENCED"
    LEASE_UNKNOWN = "ERR_LEASE_UNKNOWN"
    LIMIT = "ERR_LIMIT"


class CodeFacts(NamedTuple):
    """The HTTP status a code travels with and whether the same request may be tried again."""

    status: int
    retryable: bool


CODES: Mapping[ErrorCode, CodeFacts] = {
    ErrorCode.VALIDATION: CodeFacts(400, False),
    ErrorCode.MALFORMED_JSON: CodeFacts(400, False),
    ErrorCode.UNAUTHORIZED: CodeFacts(401, False),
    ErrorCode.TOKEN_EXPIRED: CodeFacts(401, False),
    ErrorCode.ENROLMENT_REQUIRED: CodeFacts(401, False),
    ErrorCode.FORBIDDEN: CodeFacts(403, False),
    ErrorCode.NOT_FOUND: CodeFacts(404, False),
    ErrorCode.METHOD_NOT_ALLOWED: CodeFacts(405, False),
    ErrorCode.NOT_ACCEPTABLE: CodeFacts(406, False),
    ErrorCode.TIMEOUT: CodeFacts(408, True),
    ErrorCode.CONFLICT: CodeFacts(409, False),
    ErrorCode.CURSOR_EXPIRED: CodeFacts(410, False),
    ErrorCode.TOO_LARGE: CodeFacts(413, False),
    ErrorCode.MEDIA_TYPE: CodeFacts(415, False),
    ErrorCode.TARGET_DENIED: CodeFacts(422, False),
    ErrorCode.CONFIG_INVALID: CodeFacts(422, False),
    ErrorCode.RATE_LIMITED: CodeFacts(429, True),
    ErrorCode.BACKEND: CodeFacts(500, True),
    ErrorCode.UPSTREAM: CodeFacts(502, True),
    ErrorCode.UNAVAILABLE: CodeFacts(503, True),
    ErrorCode.DEADLINE: CodeFacts(504, True),
    ErrorCode.STORAGE_FULL: CodeFacts(507, True),
}

RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


def code_for_status(status: int) -> ErrorCode:
    """Name the code of a bare HTTP status, for peers that answer without an envelope."""
    for code, facts in CODES.items():
        if facts.status == status:
            return code
    return ErrorCode.BACKEND if status >= 500 else ErrorCode.VALIDATION


class RequestError(NetsondeError):
    """A request cannot be honoured; it becomes the error envelope of the answer.

    `violations` are `(path, message)` pairs such as `("$.spec.count", "must be 1 to 100000")`.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        violations: tuple[tuple[str, str], ...] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.violations = violations
        self.retry_after_ms = retry_after_ms

    @property
    def facts(self) -> CodeFacts:
        """Status and retryability of this error's code."""
        return CODES[self.code]


class ControlPlaneError(NetsondeError):
    """The control plane answered, and the answer is no.

    `code` is kept as it came (unknown codes included); `retryable` is already decided.
    `is_verdict` says that the control plane itself answered, and no proxy on the way to it;
    `request_id` is what its log has the cause under.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        retryable: bool,
        retry_after_ms: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms
        self.details = details or {}
        self.is_verdict = False
        self.request_id: str | None = None


class TransportError(NetsondeError):
    """No usable answer came from the control plane; the same request may be tried again.

    `operation` is the verb that failed, such as `claim`.
    """

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(f"{operation}: {message}")
        self.operation = operation


def log_fields(error: BaseException) -> dict[str, str]:
    """Return what a log record about an error carries beside its text: the other side's id."""
    request_id = getattr(error, "request_id", None)
    return {} if request_id is None else {"request_id": request_id}


# What to do about errors of the system that a person can lift; they follow its own words.
_REMEDIES = {
    errno.EMFILE: ": raise this process's limit (ulimit -n, LimitNOFILE= of its unit)",
    errno.ENFILE: ": raise this host's limit (sysctl fs.file-max)",
}


def remedy(code: int | None) -> str:
    """Return what to do about an errno, to follow the system's words; empty: nothing general."""
    return _REMEDIES.get(code or 0, "")
