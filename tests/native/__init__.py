"""The native cores without sockets, for tests alone: `from native import echo_core`.

Importing the package compiles what changed; the modules are no part of a wheel.
"""

from support.native_build import compiled

__path__.append(str(compiled()))
