"""netsonde: a network probe engine."""

__version__ = "0.1.0"
