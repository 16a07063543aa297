"""The records that plugins provide: frozen and validated, each with a `name`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import Attribute, field, frozen, validators

from medsegpy_core.typing import DatasetDict, GetDicts, Transform

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.data.records import Record
    from medsegpy_core.typing import Array


Split = Literal["train", "val", "test"]


def _is_name(instance: object, attribute: Attribute[str], value: object) -> None:
    kind = type(instance).__name__
    if not isinstance(value, str):
        raise TypeError(f"{kind}.{attribute.name} must be a str, not {value!r}.")
    if not value or value != value.strip() or "@" in value:
        raise ValueError(
            f"{kind}.{attribute.name} is {value!r}: a name must not be empty, begin or end with a blank, or contain "
            "'@' (which is reserved)."
        )


# Not attrs' own validators, which put the whole attribute into the message.
def _one_of(*options: object) -> Callable[[object, Attribute[Any], object], None]:
    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not any(value is option or (isinstance(value, str) and value == option) for option in options):
            expected = ", ".join(map(repr, options))
            raise ValueError(f"{type(instance).__name__}.{attribute.name} is {value!r}, expected one of {expected}.")

    return check


def _a(kind: type) -> Callable[[object, Attribute[Any], object], None]:
    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            name = f"{type(instance).__name__}.{attribute.name}"
            raise TypeError(f"{name} is {value!r}, expected a {kind.__name__}.")

    return check


def _name() -> Any:
    return field(validator=_is_name)


def _switch() -> Any:
    return field(default=False, validator=_a(bool))


def _function() -> Any:
    return field(validator=validators.is_callable())


@frozen
class DatasetSpec:
    """A dataset that a plugin provides.

    Attributes:
        name: The name for `DatasetCatalog.get`.
        load: Returns the dataset dicts. It is called when the dataset is needed.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        metadata: The keys of `MetadataCatalog`; see docs/metadata.md.
        description: One line for ``medsegpy datasets list``.
    """

    name: str = _name()
    load: GetDicts = _function()
    split: Split | None = field(default=None, validator=_one_of(None, "train", "val", "test"))
    metadata: Mapping[str, Any] | None = field(default=None, validator=validators.optional(_a(Mapping)), hash=False)
    description: str = field(default="", validator=_a(str))


@frozen
class Augmentation:
    """The meaning of an augmentation number.

    Attributes:
        number: 1 to 99, as in ``-Aug07`` of a file name.
        name: The augmentation, in a word or two.
        parameters: Its settings.
        dataset: The dataset for which it is declared; None: all of this plugin's.
    """

    number: int = field(validator=validators.and_(_a(int), validators.ge(1), validators.le(99)))
    name: str = _name()
    parameters: Mapping[str, Any] = field(factory=dict, validator=_a(Mapping), hash=False)
    dataset: str | None = field(default=None, validator=validators.optional(_a(str)))


@frozen
class LoaderOptions:
    """The options of `build_loader` beyond the arguments of a loader's constructor; see docs/loaders.md."""

    keep_unlabelled: bool = _switch()
    allow_augmented: bool = _switch()
    allow_leakage: bool = _switch()
    reuse_buffers: bool = _switch()
    mask_dtype: str = field(default="float32", validator=_one_of("float32", "uint8"))
    mmap: bool = _switch()
    isolate: bool | None = field(default=None, validator=validators.optional(_a(bool)))


@frozen
class LoaderRequest:
    """The arguments with which `build_loader` builds a loader.

    Attributes:
        cfg: A copy of the config, for the loader to keep.
        dicts: The dataset dicts as the datasets returned them, unchecked.
        datasets: The dataset of each dict, empty for dicts without one.
        batch_size: The number of elements per batch.
        is_test: Whether this is for validation or testing.
        shuffle: Whether the order is random.
        drop_last: Whether to leave out a last batch that is not full.
        transform: ``(image, mask) -> (image, mask)`` per element, or None.
        options: Further options.
    """

    cfg: Config
    dicts: Sequence[DatasetDict]
    datasets: Sequence[str]
    batch_size: int
    is_test: bool
    shuffle: bool
    drop_last: bool
    transform: Transform | None = None
    options: LoaderOptions = field(factory=LoaderOptions)
    make_records: Callable[[Sequence[DatasetDict], Sequence[str]], list[Record]] | None = field(
        default=None, repr=False
    )

    @property
    def records(self) -> list[Record]:
        """The validated dicts.

        Raises:
            RecordError: They are not standard dataset dicts.
        """
        if self.make_records is None:
            raise ValueError("This LoaderRequest was created without `make_records`.")
        return self.make_records(self.dicts, self.datasets)


@frozen
class LoaderSpec:
    """A loader: `name` is the value of the config's `TAG`; ``build(request)`` returns the loader."""

    name: str = _name()
    build: Callable[[LoaderRequest], Any] = _function()


@frozen
class TransformSpec:
    """A transform: `name` is an item of `PREPROCESSING`; ``build(**args)`` returns
    ``(image, mask) -> (image, mask)``."""

    name: str = _name()
    build: Callable[..., Transform] = _function()


class Evaluator(Protocol):
    """Turns scans into tables. `inputs` and `outputs` are lists of dicts as yielded by `inference`."""

    def reset(self) -> None: ...

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None: ...

    def evaluate(self) -> Any: ...


@frozen
class EvaluatorSpec:
    """An evaluator: `name` is the value of the metadata's `evaluator_type`;
    ``build(dataset_name, cfg, output_folder)`` returns it."""

    name: str = _name()
    build: Callable[..., Evaluator] = _function()


@frozen
class MetricSpec:
    """A metric of one category in one scan.

    Attributes:
        name: An item of `TEST_METRICS`.
        function: ``(pred, truth, spacing) -> float`` for boolean arrays of one shape; spacing in mm along each axis.
            Axes of length 1 are kept; voxels whose label is unknown are False in both.
        unit: ``"mm"``, ``"mm3"``, or empty for a fraction.
        higher_is_better: Whether larger values are better.
    """

    name: str = _name()
    function: Callable[[Array, Array, Sequence[float]], float] = _function()
    unit: str = field(default="", validator=_a(str))
    higher_is_better: bool = field(default=True, validator=_a(bool))
