"""What tests with processes of their own share."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A background job of a script ignores Ctrl-C, and so would every process that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
