"""The coordinator's installed ServerApp."""

from strategies.server_app import app

__all__ = ["app"]
