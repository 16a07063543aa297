"""Fixtures for the tests of this plugin."""

import pytest

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    """What a test registers in the process is gone after it."""
    before = DatasetCatalog.registry._own, dict(MetadataCatalog._metadata)
    yield
    DatasetCatalog.registry._own, MetadataCatalog._metadata = before
