"""What a plugin hands over: frozen, validated records, each with a `name`."""

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
            f"{kind}.{attribute.name} is {value!r}: a name is not empty, has no blanks around it, and no '@' "
            "(which is reserved)."
        )


# attrs' own validators put the whole attribute into the message, which is what a user reads.
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
    """A dataset that a plugin brings.

    Attributes:
        name: What `DatasetCatalog.get` is asked for.
        load: Returns the dataset dicts; called when the dataset is asked for, not before.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        metadata: The keys of `MetadataCatalog`, see docs/metadata.md.
        description: One line for ``medsegpy datasets list``.
    """

    name: str = _name()
    load: GetDicts = _function()
    split: Split | None = field(default=None, validator=_one_of(None, "train", "val", "test"))
    metadata: Mapping[str, Any] | None = field(default=None, validator=validators.optional(_a(Mapping)), hash=False)
    description: str = field(default="", validator=_a(str))


@frozen
class Augmentation:
    """What an augmentation number means.

    Attributes:
        number: 1 to 99, as in ``-Aug07`` of a file name.
        name: What was done, in a word or two.
        parameters: With what settings.
        dataset: The dataset it is declared for; None: all of this plugin's.
    """

    number: int = field(validator=validators.and_(_a(int), validators.ge(1), validators.le(99)))
    name: str = _name()
    parameters: Mapping[str, Any] = field(factory=dict, validator=_a(Mapping), hash=False)
    dataset: str | None = field(default=None, validator=validators.optional(_a(str)))


@frozen
class LoaderOptions:
    """The options of `build_loader` beyond what the constructor of a loader takes; see docs/loaders.md."""

    keep_unlabelled: bool = _switch()
    allow_augmented: bool = _switch()
    allow_leakage: bool = _switch()
    reuse_buffers: bool = _switch()
    mask_dtype: str = field(default="float32", validator=_one_of("float32", "uint8"))
    mmap: bool = _switch()
    isolate: bool | None = field(default=None, validator=validators.optional(_a(bool)))


@frozen
class LoaderRequest:
    """What `build_loader` asks of a loader.

    Attributes:
        cfg: A copy of the config, for the loader to keep.
        dicts: The dataset dicts as the datasets returned them, unchecked.
        datasets: The name of the dataset of each dict, empty for dicts that came without one.
        batch_size: Elements a batch.
        is_test: Whether this is for validation or testing.
        shuffle: Whether the order is random.
        drop_last: Whether a last batch that is not full is left out.
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
        """The dicts, checked and typed.

        Raises:
            RecordError: They are not standard dataset dicts.
        """
        if self.make_records is None:
            raise ValueError("This LoaderRequest was made by hand, without `make_records`.")
        return self.make_records(self.dicts, self.datasets)


@frozen
class LoaderSpec:
    """A loader: `name` is what the config's `TAG` says; ``build(request)`` returns the loader."""

    name: str = _name()
    build: Callable[[LoaderRequest], Any] = _function()


@frozen
class TransformSpec:
    """A transform: `name` is what `PREPROCESSING` says; ``build(**args)`` returns
    ``(image, mask) -> (image, mask)``."""

    name: str = _name()
    build: Callable[..., Transform] = _function()


class Evaluator(Protocol):
    """Turns scans into tables. `inputs` and `outputs` are lists of dicts as `inference` yields them."""

    def reset(self) -> None: ...

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None: ...

    def evaluate(self) -> Any: ...


@frozen
class EvaluatorSpec:
    """An evaluator: `name` is what the metadata's `evaluator_type` says;
    ``build(dataset_name, cfg, output_folder)`` returns it."""

    name: str = _name()
    build: Callable[..., Evaluator] = _function()


@frozen
class MetricSpec:
    """A metric of one category in one scan.

    Attributes:
        name: What `TEST_METRICS` says.
        function: ``(pred, truth, spacing) -> float`` on boolean arrays of one shape; spacing in mm, one an axis. Axes
            of length 1 are there; voxels whose label is unknown are False in both.
        unit: ``"mm"``, ``"mm3"``, or empty for a fraction.
        higher_is_better: Which way is good.
    """

    name: str = _name()
    function: Callable[[Array, Array, Sequence[float]], float] = _function()
    unit: str = field(default="", validator=_a(str))
    higher_is_better: bool = field(default=True, validator=_a(bool))
