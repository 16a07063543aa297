"""How files are read: mapped or not, with the HDF5 library in this process or in a helper process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from attrs import field, frozen, validators


@frozen
class Access:
    """How the arrays of HDF5 files are read; see `accessing`.

    Attributes:
        mmap: Whether to map large files into memory instead of reading them, which is faster for patches of
            uncompressed volumes. If another program truncates a mapped file, the process ends (SIGBUS). Replacing a
            file by renaming, as all writers of this package do, is safe.
        isolate: Whether to run the HDF5 library, and the C code of compression filters, in one helper process with
            limits on memory and time, so that no file can crash or hang this process: such a file raises `ReadError`.
            Byte ranges are still read in this process.
        szip: Whether to read data compressed with szip. If such data are truncated or damaged, the library returns
            wrong values without an error, and this package cannot detect it: set it only for files that you trust.
        seconds: The time limit of the helper for one request; each 10 MB to read add a second.
        memory: The memory limit of the helper in bytes, in addition to its base size and the size of the result.
    """

    mmap: bool = field(default=False, validator=validators.instance_of(bool))
    isolate: bool = field(default=False, validator=validators.instance_of(bool))
    szip: bool = field(default=False, validator=validators.instance_of(bool), kw_only=True)
    seconds: float = field(default=60.0, validator=validators.gt(0))
    memory: int = field(default=4 << 30, validator=validators.gt(0))


DEFAULT_ACCESS: Final = Access()

_current: ContextVar[Access] = ContextVar("medsegpy_access", default=DEFAULT_ACCESS)


@contextmanager
def accessing(access: Access) -> Iterator[None]:
    """Set how files are read within the ``with`` block, in this thread.

    Example:
        ```python
        with accessing(Access(isolate=True)), open_scan(DatasetCatalog.get("abdomen_volumes_train")[0]) as scan:
            rows = scan.image[10:20]
        ```
    """
    token = _current.set(access)
    try:
        yield
    finally:
        _current.reset(token)


def current_access() -> Access:
    """Return the `Access` of the active `accessing` in this thread, or the default."""
    return _current.get()
