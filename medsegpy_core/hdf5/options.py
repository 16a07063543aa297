"""How files are accessed: mapped or read, with the HDF5 library in this process or in a helper."""

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
        mmap: Whether large files are mapped into memory instead of read. Patches of uncompressed volumes come faster.
            A file that another program cuts short while it is mapped ends the process (SIGBUS); one that is replaced
            by renaming, as all writers of this package do, does not.
        isolate: Whether the HDF5 library, and the C code of compression filters, run in one helper process with limits
            on memory and time, so that no file can crash or hang this one: such a file is a `ReadError`. Byte ranges
            are read here as ever.
        szip: Whether data that are compressed with szip are read. The library gives other values, and no error, if such
            data were cut short or damaged, and this package cannot tell: set it for files that you trust.
        seconds: How long the helper may take for one request, and a second more for each 10 MB that are read.
        memory: How many bytes of memory the helper may take beyond what it needs for itself and for the result.
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
    """Read files in this way within the ``with`` block, in this thread.

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
    """Return how files are read here and now."""
    return _current.get()
