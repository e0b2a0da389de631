"""The version of the package, which results and messages carry."""

__version__ = "0.1.0"
