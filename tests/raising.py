"""What tests ask of an error: its fields, not its sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedpgp.errors import FedPGPError


@contextmanager
def raises(kind: type[FedPGPError], where: str = "", **fields: object) -> Iterator[pytest.ExceptionInfo[FedPGPError]]:
    """Expect an error with a remedy whose fields have these values.

    `where` and the texts among `fields` (problem, allowed, remedy) must occur in the error's; `got` must be equal.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert error.remedy, f"no remedy: {error}"
    assert where in error.where, (where, error.where)
    for name, expected in fields.items():
        found = getattr(error, name)
        assert (expected in found) if name != "got" else (expected == found), (name, expected, found)
