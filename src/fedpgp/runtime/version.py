"""Version of the package, which is written into results and messages."""

__version__ = "0.1.0"
