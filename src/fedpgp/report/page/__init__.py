"""Report: one self-contained HTML page about the results of some runs."""

from fedpgp.errors import ConfigError

try:
    from fedpgp.report.page.write import follow, write_report
except ImportError as error:
    raise ConfigError(
        f"a report needs {error.name}, which is not installed", remedy='Install it with `pip install "fedpgp[report]"`'
    ) from error

__all__ = ["follow", "write_report"]
