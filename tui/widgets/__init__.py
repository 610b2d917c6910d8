"""Regions of the main view."""
