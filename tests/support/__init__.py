"""Fakes, builders and servers shared by tests; not in the wheel."""
