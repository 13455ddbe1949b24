"""Fuzzing of the native cores: `scripts/dev.py fuzz`."""
