"""Coverage of Cython lines, those of shared headers included.

Cython's own plugin finds a module's lines through the C file beside it; a header has no C file of
its own, so its lines are looked for in every module's.
"""

from pathlib import Path
from typing import Any

from Cython.Coverage import CythonModuleReporter, Plugin


class HeaderPlugin(Plugin):
    """Cython's plugin, taught where the lines of a `.pxd` are."""

    def file_reporter(self, filename: str) -> Any:
        """Return the reporter of a Cython file, or None for any other."""
        path = Path(filename).resolve()
        if path.suffix != ".pxd":
            return super().file_reporter(filename)  # type: ignore[no-untyped-call]
        code: dict[int, str] = {}
        for c_file in sorted(path.parent.glob("*.c")):
            self._read_source_lines(str(c_file), str(path))  # type: ignore[no-untyped-call]
            _, _, lines = self._c_files_map.get(str(path), (None, None, None))
            code |= lines or {}
        excluded = self._excluded_lines_map.get(path.name, set())
        return CythonModuleReporter(  # type: ignore[no-untyped-call]
            str(path), str(path), f"ext/{path.name}", code, excluded
        )


def coverage_init(registry: Any, _options: Any) -> None:
    """Register the plugin; coverage calls this."""
    plugin = HeaderPlugin()
    registry.add_configurer(plugin)
    registry.add_file_tracer(plugin)
