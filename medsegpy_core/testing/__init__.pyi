from medsegpy_core.testing.example_files import (
    Example as Example,
)
from medsegpy_core.testing.example_files import (
    example_scan as example_scan,
)
from medsegpy_core.testing.example_files import (
    write_slice_files as write_slice_files,
)
from medsegpy_core.testing.example_files import (
    write_volume_file as write_volume_file,
)
from medsegpy_core.testing.outcome import (
    CheckError as CheckError,
)
from medsegpy_core.testing.outcome import (
    Finding as Finding,
)
from medsegpy_core.testing.outcome import (
    NotCheckableError as NotCheckableError,
)
from medsegpy_core.testing.outcome import (
    UndecidedError as UndecidedError,
)
from medsegpy_core.testing.plugin_checks import (
    check_plugin as check_plugin,
)
from medsegpy_core.testing.suites import (
    DatasetTests as DatasetTests,
)
from medsegpy_core.testing.suites import (
    ReaderTests as ReaderTests,
)
