"""Running a function in a new interpreter or in a fork, and checking that an import is light."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from medsegpy_core.testing.outcome import CheckError, NotCheckableError, require

_PATIENCE: Final = 60.0  # seconds

# The path of this interpreter comes first: the pickled objects may need any of it.
_PROGRAM: Final = """\
import json, pickle, sys
with open(sys.argv[1], "rb") as file:
    sys.path[:] = json.loads(file.readline())
    function, arguments = pickle.load(file)
with open(sys.argv[2], "wb") as file:
    pickle.dump(function(*arguments), file)
"""


def in_new_interpreter(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function in a new interpreter, like a spawned process.

    It has the same environment, but another hash seed, so that the order of sets differs.

    Args:
        function: A function of a module. It is pickled with its arguments.
        *arguments: Its arguments.

    Raises:
        CheckError: It failed there, or took more than a minute.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, returned = Path(folder) / "given", Path(folder) / "returned"
        given.write_bytes(json.dumps(sys.path).encode() + b"\n" + pickle.dumps((function, arguments)))
        command = [sys.executable, "-c", _PROGRAM, str(given), str(returned)]
        environment = {**os.environ, "PYTHONHASHSEED": "20231" if os.environ.get("PYTHONHASHSEED") == "0" else "0"}
        try:
            done = subprocess.run(  # noqa: S603 -- this interpreter, with our own program
                command, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise CheckError(f"in a new process it takes more than {_PATIENCE:.0f} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["(no output)"]
            raise CheckError(f"in a new process it fails, with status {done.returncode}: {lines[-1]}")
        return pickle.loads(returned.read_bytes())  # noqa: S301 -- written by the process above


def in_fork(function: Callable[[], Any]) -> Any:
    """Return the result of a function in a fork of this process.

    Raises:
        CheckError: It failed there, or took more than a minute.
        NotCheckableError: This operating system has no fork.
    """
    if not hasattr(os, "fork"):
        raise NotCheckableError("this operating system has no fork")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns if there are threads; the check is about exactly this case.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(function, reading, writing)
    os.close(writing)
    try:
        data = _all_of(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # it has answered, or it hangs
        _, status = os.waitpid(child, 0)
    if not data:
        raise CheckError(f"a forked process ended without an answer (wait status {status})")
    ok, value = pickle.loads(data)  # noqa: S301 -- written by the fork
    if not ok:
        raise CheckError(f"in a forked process it fails: {value}")
    return value


def _answer(function: Callable[[], Any], reading: int, writing: int) -> None:
    """Run in the child: write the result, and never return."""
    try:
        os.close(reading)
        try:
            data = pickle.dumps((True, function()))
        except BaseException as error:  # noqa: BLE001 -- anything is reported to the parent
            data = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)
    finally:
        # Skip the parent's cleanup handlers, such as those of pytest.
        os._exit(0)


def _all_of(pipe: int) -> bytes:
    data = b""
    deadline = time.monotonic() + _PATIENCE
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise CheckError(f"a forked process does not answer within {_PATIENCE:.0f} s: does it wait for a lock?")
        part = os.read(pipe, 1 << 16)
        if not part:
            return data
        data += part


HEAVY: Final = (
    "PIL",
    "SimpleITK",
    "h5py",
    "keras",
    "matplotlib",
    "monai",
    "nibabel",
    "numpy",
    "pandas",
    "pydicom",
    "scipy",
    "skimage",
    "sklearn",
    "tensorflow",
    "torch",
)


def check_light_import(module: str, heavy: Sequence[str] = HEAVY) -> None:
    """Check that a plugin's module imports no heavy packages, because every command of every user imports it.

    Raises:
        CheckError: It does, or it cannot be imported.
    """
    found = in_new_interpreter(_heavy_after_importing, module, tuple(heavy))
    require(
        not found,
        f"`import {module}` imports {', '.join(found)}. The modules of all plugins are imported together, so import "
        "heavy packages inside the functions that use them",
    )


def _heavy_after_importing(module: str, heavy: Sequence[str]) -> list[str]:
    # Modules that the environment imports at startup, such as coverage tools, do not count.
    before = set(sys.modules)
    importlib.import_module(module)
    return sorted(set(heavy) & (set(sys.modules) - before))
