"""Benches: every budget of docs/performance.md, each with its rival in the same run."""
