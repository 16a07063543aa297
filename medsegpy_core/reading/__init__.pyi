from medsegpy_core._util.atomic import (
    replace_file as replace_file,
)
from medsegpy_core._util.limits import (
    environment_bytes as environment_bytes,
)
from medsegpy_core._util.stamps import (
    Stamp as Stamp,
)
from medsegpy_core._util.stamps import (
    file_hash as file_hash,
)
from medsegpy_core._util.stamps import (
    is_young as is_young,
)
from medsegpy_core._util.stamps import (
    read_settled as read_settled,
)
from medsegpy_core._util.stamps import (
    stamp_of as stamp_of,
)
from medsegpy_core._util.stamps import (
    wait_for_write as wait_for_write,
)
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
