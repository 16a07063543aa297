"""What holds for all tests: those of the core, of the plugins, and of the examples in the docs."""

import pytest
from hypothesis import settings

from medsegpy_core import catalog, transforms
from medsegpy_core.reading import readers

# How long an example takes depends on how busy the machine is.
settings.register_profile("medsegpy", deadline=None)
settings.load_profile("medsegpy")


@pytest.fixture(autouse=True)
def _clean_catalogs():
    """What a test registers in the process is gone after it."""
    registries = [catalog.DatasetCatalog.registry, readers._registry, transforms._registry]
    before = [registry._own for registry in registries]
    metadata = dict(catalog.MetadataCatalog._metadata)
    yield
    for registry, own in zip(registries, before, strict=True):
        registry._own = own
    catalog.MetadataCatalog._metadata = metadata
