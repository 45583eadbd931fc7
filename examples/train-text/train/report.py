"""The report of a run."""

from asysi.train.report import make_report

__all__ = ["make_report"]
