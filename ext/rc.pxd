"""Turn the return codes of system calls into OSError: the only core that raises.

Python itself picks the subclass by errno (EPERM becomes PermissionError).
"""

from libc.string cimport strerror

from sysnet cimport errno


cdef inline int raise_errno(int code, str operation) except -1:
    """Raise OSError for errno `code`; `operation` says what was tried, such as "set IP_TTL"."""
    raise OSError(code, f"{operation}: {strerror(code).decode('utf-8', 'replace')}")


cdef inline int check(int status, str operation) except -1:
    """Return status, or raise for errno when it is negative. Call right after the system call."""
    if status < 0:
        raise_errno(errno, operation)
    return status
