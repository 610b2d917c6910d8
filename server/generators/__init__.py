"""Registered bundles: upload, list, release, withhold."""
