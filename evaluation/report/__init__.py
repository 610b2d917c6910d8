"""The report: one self-contained HTML page."""

from evaluation.report.page import render

__all__ = ["render"]
