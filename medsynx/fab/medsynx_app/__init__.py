"""Stub app; see its pyproject.toml."""
