from medsegpy_core.reading.canonical_scan import (
    CanonicalScan as CanonicalScan,
)
from medsegpy_core.reading.canonical_scan import (
    open_record as open_record,
)
from medsegpy_core.reading.foreign_files import (
    foreign_kind as foreign_kind,
)
from medsegpy_core.reading.lazy_arrays import (
    AxesView as AxesView,
)
from medsegpy_core.reading.lazy_arrays import (
    basic_selection as basic_selection,
)
from medsegpy_core.reading.lazy_arrays import (
    full_selection as full_selection,
)
from medsegpy_core.reading.lazy_arrays import (
    read_into as read_into,
)
from medsegpy_core.reading.masks import (
    UNLABELLED as UNLABELLED,
)
from medsegpy_core.reading.masks import (
    UNLABELLED_UINT8 as UNLABELLED_UINT8,
)
from medsegpy_core.reading.masks import (
    value_codes as value_codes,
)
from medsegpy_core.reading.readers import (
    all_readers as all_readers,
)
from medsegpy_core.reading.readers import (
    find_reader as find_reader,
)
from medsegpy_core.reading.readers import (
    named_reader as named_reader,
)
from medsegpy_core.reading.readers import (
    register_reader as register_reader,
)
