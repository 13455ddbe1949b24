"""The command line: one module per command group, no logic of its own."""

from netsonde.cli.root import main

__all__ = ["main"]
