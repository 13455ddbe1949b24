"""Build the native modules; all metadata lives in pyproject.toml.

Environment:
    NETSONDE_ANNOTATE=1  also write Cython's annotated HTML to build/cython/ext/
    NETSONDE_TRACE=1     line tracing, for coverage (full API, slow; never ship)
    NETSONDE_NATIVE="a b" build only these modules
    NETSONDE_SANITIZE=1  AddressSanitizer and UBSan (full API; run under `scripts/dev.py asan`)
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = (
    "deadlines",
    "icmp",
    "ledger",
    "reports",
)  # ext/<name>.pyx becomes netsonde._native.<name>
LIMITED_API = "0x030B0000"  # 3.11, the oldest Python we support: one wheel serves them all


def flag(name: str) -> bool:
    """Whether the build switch NETSONDE_<name> is on."""
    return os.environ.get(f"NETSONDE_{name}") == "1"


TRACE, ANNOTATE, SANITIZE = flag("TRACE"), flag("ANNOTATE"), flag("SANITIZE")
ABI3 = not (TRACE or SANITIZE)  # line tracing needs the full API

warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if SANITIZE else []
macros = [("Py_LIMITED_API", LIMITED_API)] if ABI3 else []
if TRACE:
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
headers = sorted(path.as_posix() for path in Path("ext").glob("*.pxd"))

setup(
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
    ext_modules=cythonize(  # type: ignore[no-untyped-call]
        [
            Extension(
                f"netsonde._native.{name}",
                [f"ext/{name}.pyx"],
                # Listed so that an sdist carries them: cythonize swaps `sources` for the .c files.
                depends=[f"ext/{name}.pyx", *headers],
                define_macros=macros,
                py_limited_api=ABI3,
                extra_compile_args=["-O1" if SANITIZE else "-O3", *warnings, *sanitize],
                extra_link_args=sanitize,
            )
            for name in os.environ.get("NETSONDE_NATIVE", "").split() or NATIVE
        ],
        include_path=["ext"],
        # Coverage finds a module's source through the .c file beside the .pyx.
        build_dir=None if TRACE else "build/cython",
        annotate=ANNOTATE,
        force=TRACE or ANNOTATE or SANITIZE,  # cythonize does not notice a changed switch
        compiler_directives={
            "language_level": 3,
            "auto_pickle": False,
            "autotestdict": False,
            "linetrace": TRACE,
            "warn.maybe_uninitialized": True,
            "warn.unreachable": True,
            "warn.unused": True,
        },
    ),
)
