"""Fixtures for all tests of the core."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from medsegpy_core._util import stamps
from medsegpy_core.hdf5 import isolation
from medsegpy_core.hdf5.backend import NUMPY, current_backend
from medsegpy_core.plugins.discovery import find_entry_points
from medsegpy_core.plugins.manager import PluginManager, use_manager


@pytest.fixture(params=["kernels", "numpy"])
def backend(request, monkeypatch):
    """Run the test twice: with the compiled kernels of medsegpy-native, and with NumPy only.

    A module whose tests read files asks for it: ``pytestmark = pytest.mark.usefixtures("backend")``. The choice is made
    in the environment, so that it also holds in the processes that the test starts. A loader keeps what it
    was built with.
    """
    if request.param == "numpy":
        others = {point.distribution for point in find_entry_points()} - {"medsegpy-native"}
        monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", ",".join(sorted(others)))
        assert current_backend() is NUMPY
    else:
        monkeypatch.delenv("MEDSEGPY_LOAD_PLUGINS", raising=False)
        # They leave young files to NumPy, and those of a test are. The clock of a file system moves on every 10 ms.
        monkeypatch.setattr(stamps, "YOUNG_NS", 12_000_000)
        if current_backend() is NUMPY:
            # With a compiler the kernels must be there: a skip would hide that they are not.
            (pytest.fail if shutil.which("cc") else pytest.skip)("medsegpy-native has no compiled kernels here")
    return request.param


@pytest.fixture
def asked_helper(monkeypatch):
    """An event that is set whenever this process has sent a request to its helper (`isolate=True`)."""
    event = threading.Event()

    def sending(*arguments, real=isolation.send, **named):
        real(*arguments, **named)
        event.set()

    monkeypatch.setattr(isolation, "send", sending)
    return event


class FakeSite:
    """A folder like site-packages, with distributions for one test. A module beside a dist-info folder with
    an `entry_points.txt` is all that an installed plugin is."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.modules = set()

    def add(self, plugin, code="", *, distribution=None, version="1.0", module=None, entry_points=None):
        """Install a plugin. `code` is its module; None: no module."""
        distribution = distribution or f"medsegpy-{plugin}"
        module = module or f"fake_{distribution}_{plugin}".replace("-", "_").replace(".", "_")
        if code is not None:
            (self.folder / f"{module}.py").write_text(textwrap.dedent(code))
        self.modules.add(module)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n\nAbout.\n")
        if entry_points is None:
            entry_points = f"[medsegpy]\n{plugin} = {module}\n"
        (info / "entry_points.txt").write_text(entry_points)
        return module

    def entry_points(self):
        return find_entry_points([str(self.folder)])

    def manager(self):
        return PluginManager(self.entry_points())

    def run(self, code, *flags, **environ):
        """Run code in a new interpreter with these distributions, in addition to the real ones."""
        path = os.pathsep.join([str(self.folder), str(Path(__file__).parent.parent)])
        env = {**os.environ, "PYTHONPATH": path, **environ}
        command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty `FakeSite` on the path of this process."""
    fake = FakeSite(tmp_path / "site")
    monkeypatch.delenv("MEDSEGPY_LOAD_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(fake.folder))
    before = set(sys.modules)
    yield fake
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in fake.modules:
            del sys.modules[name]


@pytest.fixture
def plugins(site):
    """Make the plugins of `site` the only installed ones; a call of the result loads them again."""
    stack = []

    def load():
        while stack:
            stack.pop().__exit__(None, None, None)
        stack.append(use_manager(site.manager()))
        return stack[-1].__enter__()

    load()
    yield load
    while stack:
        stack.pop().__exit__(None, None, None)
