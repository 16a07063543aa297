"""Fixtures for all tests of the kernels."""

import pytest

from medsegpy_core._util import stamps


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    """Treat no file as young, because the kernels leave young files to NumPy."""
    monkeypatch.setattr(stamps, "YOUNG_NS", 0)
