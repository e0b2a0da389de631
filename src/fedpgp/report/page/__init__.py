"""One self-contained page of what some runs found."""

from fedpgp.report.page.write import follow, write_report

__all__ = ["follow", "write_report"]
