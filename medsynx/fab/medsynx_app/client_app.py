"""The site's installed ClientApp. Sites never load this file: their executor runs what is installed."""

from site_agent.client_app import app

__all__ = ["app"]
