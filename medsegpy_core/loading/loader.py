"""`DataLoader` and the five built-in loaders: batches by number or in order, shards, and checkpoints."""

from __future__ import annotations

import copy
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from attrs import evolve

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.datasets import dataset_names, make_records
from medsegpy_core.errors import ConfigError, DataWarning
from medsegpy_core.loading.batches import Batch
from medsegpy_core.loading.buffers import BufferSets
from medsegpy_core.loading.evaluation_guards import by_dataset, check_leakage, random_preprocessing
from medsegpy_core.loading.inference import infer_scans, scans_to_infer
from medsegpy_core.loading.order import Order, check_batch_size, check_epoch, check_rank
from medsegpy_core.loading.prefetch import BatchIterator, batch_function, check_state, epoch_order
from medsegpy_core.loading.prepare import Setup, role_dataset
from medsegpy_core.loading.windows import (
    Element,
    GridWindows,
    RandomWindows,
    SliceWindows,
    VolumeWindows,
    Windows,
    spatial_setting,
)
from medsegpy_core.plugins.specs import LoaderRequest

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.typing import Array, DatasetDict


class DataLoader:
    """The base class of the built-in loaders; the subclasses define how elements are cut.

    A loader is immutable except for its position: `epoch`, and the number of batches that the newest iterator has
    delivered.

    Args:
        cfg: A config; the loader keeps a copy.
        dataset_dicts: Standard dataset dicts; those from `DatasetCatalog.get` contain the name of their dataset.
        is_test: Whether this is for validation or testing: nothing is dropped, augmented elements are rejected, and
            batches also contain the raw images.
        shuffle: Whether each epoch has its own random order.
        drop_last: Whether an incomplete last batch is dropped; ignored with `is_test`.
        batch_size: Elements per batch.
    """

    def __init__(
        self,
        cfg: Config,
        dataset_dicts: Sequence[DatasetDict],
        is_test: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        batch_size: int = 1,
    ):
        datasets = dataset_names(dataset_dicts, role_dataset(cfg, is_test))
        check_leakage(by_dataset(dataset_dicts), cfg)
        self._set_up(
            LoaderRequest(
                cfg=cfg.copy(),
                dicts=dataset_dicts,
                datasets=datasets,
                batch_size=batch_size,
                is_test=is_test,
                shuffle=shuffle,
                drop_last=drop_last,
                make_records=make_records,
            )
        )

    @classmethod
    def from_request(cls, request: LoaderRequest) -> Self:
        """Build a loader from a `LoaderRequest`. A `LoaderSpec` refers to this method."""
        loader = cls.__new__(cls)
        loader._set_up(request)  # noqa: SLF001 -- an instance of this class
        return loader

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """Return how this loader cuts elements, by the config."""
        raise TypeError(f"{cls.__name__} does not define how to cut elements; use one of its subclasses.")

    def _set_up(self, request: LoaderRequest) -> None:
        check_batch_size(request.batch_size)
        cfg = request.cfg
        self._seed_given = cfg.SEED is not None
        seed = int(cfg.SEED) if cfg.SEED is not None else secrets.randbits(63)
        self.setup = Setup.of(request, self.windows(cfg), seed)
        self._order = Order(
            elements=len(self.setup.maker.plan),
            batch_size=request.batch_size,
            shuffle=request.shuffle,
            drop_last=request.drop_last and not request.is_test,
            seed=seed,
        )
        self._lock = ForkSafeLock()
        self._newest: object | None = None
        self._buffers = BufferSets()
        # `epoch` is read next; `pass_epoch` and `position` are those of the newest iterator.
        self._epoch = self._pass_epoch = 0
        self._position = self._resume_at = 0

    # -- properties

    @property
    def cfg(self) -> Config:
        """The loader's own copy of the config."""
        return self.setup.cfg

    @property
    def batch_size(self) -> int:
        """Elements per batch."""
        return self._order.batch_size

    @property
    def seed(self) -> int:
        """The seed: the config's, or a random one."""
        return self._order.seed

    @property
    def epoch(self) -> int:
        """The epoch that `loader[i]` and the next iterator read."""
        return self._epoch

    @property
    def num_elements(self) -> int:
        """Number of elements over all ranks."""
        return self._order.elements

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._order.batches

    def __repr__(self) -> str:
        order = self._order
        return (
            f"<{type(self).__name__}: {order.elements} elements of {len(self.setup.sources)} scans, {len(self)} "
            f"batches of {order.batch_size}, rank {order.rank} of {order.world_size}, seed {order.seed}, "
            f"epoch {self._epoch}>"
        )

    # -- batches

    def __getitem__(self, i: int) -> Batch:
        """Return batch `i` of the current epoch, without a change of position.

        Raises:
            IndexError: There is no such batch.
        """
        return self.setup.maker.make(self._numbers(i), self._epoch)

    def elements(self, i: int) -> list[Element]:
        """Return the elements in the rows of batch `i` of the current epoch."""
        return [self.setup.maker.element(int(number), self._epoch) for number in self._numbers(i)]

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass of the current epoch; once after `load_state_dict`, start at the loaded position."""
        self.setup.require_elements()
        if not len(self):
            warnings.warn(
                f"{self!r} has no batch: {self.num_elements} elements over {self._order.world_size} ranks do not fill "
                f"a batch of {self.batch_size}. Use a smaller batch_size, or drop_last=False.",
                DataWarning,
                stacklevel=2,
            )
        token = object()
        with self._lock:
            start, self._resume_at = self._resume_at, 0
            self._newest, self._pass_epoch, self._position = token, self._epoch, start
        epoch = self._epoch
        return BatchIterator(
            batch_function(self.setup.maker, self._order, epoch_order(self._order, epoch), epoch),
            start,
            len(self),
            self.cfg.NUM_WORKERS,
            self._buffers if self.setup.options.reuse_buffers else None,
            lambda delivered: self._delivered(token, delivered),
            lambda: self._exhausted(token, epoch),
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        check_epoch(epoch)
        self._start_at(epoch, batches=0)

    def _numbers(self, i: int) -> Array:
        """Return the elements of batch `i` of the current epoch."""
        if not -len(self) <= i < len(self):
            self.setup.require_elements()
            raise IndexError(f"There is no batch {i}: an epoch of this loader has {len(self)} batches.")
        return self._order.batch(epoch_order(self._order, self._epoch), i % len(self))

    # -- position

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the newest iterator as plain ints: seed, epoch, and delivered batches.

        After `load_state_dict` with this state, a loader with the same data and settings delivers the remaining
        batches, identical bit for bit, with any number of workers.
        """
        with self._lock:
            return {
                "seed": self._order.seed,
                "epoch": self._pass_epoch,
                "batches": self._position,
                "elements": self._order.elements,
                "batch_size": self._order.batch_size,
                "world_size": self._order.world_size,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of another loader.

        Raises:
            ValueError: The state is malformed, or from a loader with other data, batch size or world size.
        """
        check_state(state, self.state_dict())
        self._order = evolve(self._order, seed=int(state["seed"]))
        self.setup = self.setup.with_seed(self._order.seed)
        self._start_at(int(state["epoch"]), int(state["batches"]))

    def _start_at(self, epoch: int, batches: int) -> None:
        with self._lock:
            self._newest = None
            self._epoch = self._pass_epoch = epoch
            self._position = self._resume_at = batches

    def _delivered(self, token: object, delivered: int) -> None:
        with self._lock:
            if self._newest is token:
                self._position = delivered

    def _exhausted(self, token: object, epoch: int) -> None:
        with self._lock:
            if self._epoch == epoch:
                self._epoch += 1
            if self._newest is token:
                self._newest, self._pass_epoch, self._position = None, self._epoch, 0

    def shard(self, rank: int, world_size: int) -> Self:
        """Return the loader of one of `world_size` processes that share an epoch.

        With `drop_last`, all ranks have the same number of batches. Without, each element occurs on exactly one rank,
        and the numbers of batches differ by at most one.

        Raises:
            ConfigError: The config has no `SEED`: each process would draw its own, and the shards would overlap.
            ValueError: There is no such rank.
        """
        check_rank(rank, world_size)
        if not self._seed_given:
            raise ConfigError("A sharded loader needs a SEED in the config, the same on all ranks: cfg.SEED = 0.")
        return self._with_order(evolve(self._order, rank=rank, world_size=world_size))

    def _with_order(self, order: Order) -> Self:
        other = copy.copy(self)
        other.__dict__.update(_order=order, _lock=ForkSafeLock(), _buffers=BufferSets())
        other.set_epoch(self._epoch)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Pickle the position, but not the lock and the iterators of this process.
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_newest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=ForkSafeLock(), _newest=None)

    # -- scans

    def inference(
        self, model: Any, output: str = "probs", allow_gaps: bool = False
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Predict scan by scan.

        Every scan is predicted as a whole, regardless of shuffle, drop_last and the position; a sharded loader predicts
        the scans ``rank::world_size``. The iterator may be abandoned, and several may run at the same time.

        Args:
            model: An object with ``predict(batch)``, or a callable that takes a batch; returns N x ... x C.
            output: ``"probs"`` for the output of the model, ``"labels"`` for labels derived from it, as uint8.
            allow_gaps: Whether a scan with missing slices is predicted on the existing ones, whose numbers are then in
                ``inputs["slice_ids"]``.

        Yields:
            `inputs`: ``scan_id``, ``x`` (H x W x D [x K], float32, as stored), ``subject_id``, ``labelled``, all
            ``scan_*``. `outputs`: ``y_true`` (H x W x D x C, uint8; None unless the whole scan is labelled),
            ``y_pred`` (H x W x D x C, float32, or uint8 for labels), ``time_elapsed`` (s).

        Raises:
            ConfigError: A transform in the config's ``PREPROCESSING`` draws random numbers.
            RecordError: Slices of a scan are missing; the message lists them.
            ShapeError: The predictions of the model have the wrong shape.
            MemoryError: A scan needs more than ``MEDSEGPY_MEMORY``.
        """
        if self.setup.random_preprocessing:
            raise random_preprocessing(self.setup.random_preprocessing, "inference(model) is called")
        scans = scans_to_infer(self.setup, allow_gaps)[self._order.rank :: self._order.world_size]
        return infer_scans(self.setup, scans, model, self.batch_size, output)


_NO_PADDING: Final = (0, 0, 0)


class DefaultDataLoader(DataLoader):
    """One slice per element: images N x H x W x 1 (K channels: N x H x W x K), masks N x H x W x C."""

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        return SliceWindows(1, _in_plane(cfg))


class S25dDataLoader(DataLoader):
    """A slice and its neighbors as channels: images N x H x W x K, K = ``IMG_SIZE[-1]`` odd, padded at the ends of the
    scan with ``IMG_PAD_MODE``; masks N x H x W x C of the middle slice."""

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        return SliceWindows(_odd_depth(cls, cfg), _in_plane(cfg))


class N5dDataLoader(DataLoader):
    """Windows of a volume along its last axis: images N x H x W x K, K = ``IMG_SIZE[-1]`` odd, padded only by
    ``IMG_PAD_SIZE``; masks N x H x W x C of the middle slice."""

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        pad = spatial_setting("IMG_PAD_SIZE", cfg.IMG_PAD_SIZE, _NO_PADDING)
        stride = spatial_setting("IMG_STRIDE", cfg.IMG_STRIDE, (1, 1, 1), minimum=1)
        return VolumeWindows(_odd_depth(cls, cfg), _in_plane(cfg), pad[2], stride[2])


class PatchDataLoader(DataLoader):
    """A grid of patches: images N x P1 x P2 x P3 x 1, masks N x P1 x P2 x P3 x C.

    Patches of depth 1 give N x P1 x P2 x 1 and N x P1 x P2 x C.
    """

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        patch = spatial_setting("IMG_SIZE", cfg.IMG_SIZE, minimum=1)
        pad = spatial_setting("IMG_PAD_SIZE", cfg.IMG_PAD_SIZE, _NO_PADDING)
        return GridWindows(patch, pad, spatial_setting("IMG_STRIDE", cfg.IMG_STRIDE, patch, minimum=1))


class RandomPatchDataLoader(DataLoader):
    """``PATCHES_PER_SCAN`` random patches per scan and epoch, with images and masks as in `PatchDataLoader`.

    A share ``FOREGROUND_RATIO`` of them is centered on a foreground voxel.
    """

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        patch = spatial_setting("IMG_SIZE", cfg.IMG_SIZE, minimum=1)
        pad = spatial_setting("IMG_PAD_SIZE", cfg.IMG_PAD_SIZE, _NO_PADDING)
        return RandomWindows.of(patch, pad, cfg.PATCHES_PER_SCAN, cfg.FOREGROUND_RATIO)


def _in_plane(cfg: Config) -> tuple[int, int] | None:
    """Return the H and W of ``IMG_SIZE``; None: slices keep their size."""
    if not cfg.IMG_SIZE:
        return None
    h, w, _ = spatial_setting("IMG_SIZE", cfg.IMG_SIZE, minimum=1)
    return h, w


def _odd_depth(cls: type[DataLoader], cfg: Config) -> int:
    size = cfg.IMG_SIZE
    if len(size) != 3 or size[-1] % 2 == 0:
        raise ConfigError(
            f"{cls.__name__} needs IMG_SIZE = (H, W, K) with an odd number K of slices per window, so that there is a "
            f"middle slice; it is {size!r}."
        )
    return int(size[-1])
