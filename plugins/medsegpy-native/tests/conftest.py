"""What all tests of the kernels share."""

import pytest

from medsegpy_core._util import stamps


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    """Take no file for young: the kernels leave those to NumPy."""
    monkeypatch.setattr(stamps, "YOUNG_NS", 0)
