"""How other libraries read the same scans, as documented by them. Libraries that are not installed are left out."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.benchmarks.material import CATEGORIES
from tests.benchmarks.rounds import Case

__all__ = ["patch_cases", "slice_cases"]

BATCH = 16
PATCH = (128, 128, 64)


def _have(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def collated(mask: np.ndarray) -> np.ndarray:
    """Collate by logical OR: ... x 6 to ... x 4, uint8."""
    return np.stack(
        [mask[..., c] if isinstance(c, int) else mask[..., c[0]] | mask[..., c[1]] for c in CATEGORIES], axis=-1
    )


def _read_slice(item: dict[str, str]) -> dict[str, np.ndarray]:
    """Read a slice as channels-first float32, as for networks in PyTorch."""
    with h5py.File(item["image"], "r") as file:
        image = file["data"][:, :, 0]
    with h5py.File(item["label"], "r") as file:
        mask = collated(file["data"][:, :, 0])
    return {"image": image[None], "label": np.moveaxis(mask, -1, 0).astype(np.float32)}


def _rows(found: Any) -> int:
    return len(found["data"] if isinstance(found, dict) else getattr(found, "data", found))


def _cacheable(function: Callable[[Any], Any]) -> Any:
    """Return a transform of MONAI's class, because MONAI does not cache the results of plain functions."""
    from monai.transforms import Transform

    class Read(Transform):
        def __call__(self, item: Any) -> Any:
            return function(item)

    return Read()


def _epoch(loader: Any, key: str, limit: int | None = None) -> Callable[[], int]:
    def run() -> int:
        return sum(_rows(batch[key]) for batch in itertools.islice(loader, limit))

    return run


def slice_cases(slices: Path, volume: Path, scratch: Path) -> tuple[list[Case], list[str]]:
    """Return the cases of random 2D slices, and the missing libraries."""
    cases, absent = [], []
    stems = sorted(path.with_suffix("") for path in slices.glob("*.im"))
    items = [{"image": f"{stem}.im", "label": f"{stem}.seg"} for stem in stems]
    if _have("monai", "torch"):
        cases += _monai_slices(items, scratch)
    else:
        absent.append("MONAI")
    if _have("torchio", "torch"):
        cases.append(_torchio_slices(_with_labels([volume], scratch)[0]))
    else:
        absent.append("TorchIO")
    return cases, absent


def _monai_slices(items: Sequence[dict[str, str]], scratch: Path) -> list[Case]:
    from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset

    read_slice = _cacheable(_read_slice)

    def loader(dataset: Any, workers: int) -> Any:
        return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    plain = Dataset(items, read_slice)
    persistent = PersistentDataset(items, read_slice, cache_dir=scratch / "persistent")
    cached = CacheDataset(items, read_slice, progress=False)
    return [
        Case("MONAI Dataset, 0 workers", _epoch(loader(plain, 0), "image", 8)),
        Case("MONAI Dataset, 2 workers", _epoch(loader(plain, 2), "image")),
        Case("MONAI PersistentDataset", _epoch(loader(persistent, 0), "image")),
        Case("MONAI CacheDataset, all in RAM", _epoch(loader(cached, 0), "image")),
    ]


def _label_map(mask: np.ndarray) -> np.ndarray:
    return (collated(mask) * np.arange(1, 5, dtype=np.uint8)).max(axis=-1)


def _torchio_reader(key: str) -> Callable[[Any], tuple[Any, np.ndarray]]:
    import torch

    def read(path: Any) -> tuple[Any, np.ndarray]:
        with h5py.File(path, "r") as file:
            array = file[key][:] if key in file else _label_map(file["seg"][:])
        return torch.from_numpy(array[None]), np.eye(4)

    return read


def _with_labels(volumes: Sequence[Path], scratch: Path) -> list[Path]:
    """Write the volumes with a label map, the best input for slices in TorchIO."""
    found = []
    for path in volumes:
        found.append(scratch / f"{path.stem}-labels.h5")
        with h5py.File(path, "r") as source, h5py.File(found[-1], "w") as file:
            file["volume"] = source["volume"][:]
            file["labels"] = _label_map(source["seg"][:])
    return found


def _torchio_queue(volumes: Sequence[Path], patch: tuple[int, int, int], per_volume: int, labels: bool) -> Any:
    import torchio

    subjects = [
        torchio.Subject(
            image=torchio.ScalarImage(path, reader=_torchio_reader("volume")),
            label=torchio.LabelMap(path, reader=_torchio_reader("labels")),
        )
        for path in volumes
    ]
    sampler = torchio.LabelSampler(patch, "label") if labels else torchio.UniformSampler(patch)
    return torchio.Queue(
        torchio.SubjectsDataset(subjects), per_volume * len(volumes), per_volume, sampler, num_workers=0
    )


def _torchio_slices(volume: Path) -> Case:
    import torchio

    queue = _torchio_queue([volume], (384, 384, 1), 160, labels=False)
    return Case(
        "TorchIO Queue, slices", _epoch(_quiet(torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0)), "label")
    )


class _quiet:
    """Silence a loader that warns in every epoch."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from self.loader

    def __len__(self) -> int:
        return len(self.loader)


def patch_cases(volumes: Sequence[Path], scratch: Path) -> tuple[list[Case], list[str]]:
    """Return the cases of random 128 x 128 x 64 patches, and the missing libraries."""
    cases, absent = [], []
    if _have("monai", "torch"):
        cases += _monai_patches(volumes)
    else:
        absent.append("MONAI")
    if _have("torchio", "torch"):
        import torchio

        for name, labels in (("uniform", False), ("label", True)):
            queue = _torchio_queue(volumes, PATCH, 8, labels)
            loader = _quiet(torchio.SubjectsLoader(queue, batch_size=2, num_workers=0))
            cases.append(Case(f"TorchIO Queue, {name} sampler", _epoch(loader, "label")))
    else:
        absent.append("TorchIO")
    if _have("nnunetv2", "blosc2"):
        cases.append(_nnunet_patches(volumes, scratch))
    else:
        absent.append("nnU-Net")
    return cases, absent


def _monai_patches(volumes: Sequence[Path]) -> list[Case]:
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, RandCropByPosNegLabeld, RandSpatialCropd

    def read(item: dict[str, str]) -> dict[str, np.ndarray]:
        with h5py.File(item["path"], "r") as file:
            labels = _label_map(file["seg"][:])
            return {"image": file["volume"][:][None], "label": labels[None]}

    items = [{"path": str(path)} for path in volumes] * 4
    random_crop = RandSpatialCropd(["image", "label"], PATCH, random_size=False)
    by_label = RandCropByPosNegLabeld(["image", "label"], "label", PATCH, num_samples=1)

    def case(name: str, crop: Any, copy_cache: bool, limit: int) -> Case:
        # The same few volumes several times, so that an epoch is worth timing; they are in the cache once each.
        dataset = CacheDataset(
            items, Compose([_cacheable(read), crop]), progress=False, copy_cache=copy_cache, hash_as_key=True
        )
        return Case(name, _epoch(DataLoader(dataset, batch_size=2, shuffle=True, num_workers=0), "image", limit))

    return [
        case("MONAI CacheDataset + random crop", random_crop, True, 4),
        case("MONAI CacheDataset + random crop, copy_cache=False", random_crop, False, 4),
        case("MONAI CacheDataset + crop by label", by_label, True, 2),
    ]


def _nnunet_patches(volumes: Sequence[Path], scratch: Path) -> Case:
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    folder = scratch / "nnunet"
    folder.mkdir(exist_ok=True)
    patch = (PATCH[2], *PATCH[:2])
    for path in volumes:
        with h5py.File(path, "r") as file:
            image = np.ascontiguousarray(file["volume"][:].transpose(2, 0, 1)[None])
            labels = _label_map(file["seg"][:])
        labels = np.ascontiguousarray(labels.transpose(2, 0, 1)[None].astype(np.int8))
        blocks, chunks = comp_blosc2_params(image.shape, patch, image.itemsize)
        seg_blocks, seg_chunks = comp_blosc2_params(labels.shape, patch, labels.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image, labels, {}, str(folder / path.stem), chunks, blocks, seg_chunks, seg_blocks
        )
    dataset = nnUNetDatasetBlosc2(str(folder))
    names = [path.stem for path in volumes]
    rng = np.random.default_rng(0)

    def run() -> int:
        for _ in range(8):
            images, masks = np.empty((2, 1, *patch), np.float32), np.empty((2, 1, *patch), np.int16)
            for i in range(2):
                image, labels, _, _ = dataset[names[int(rng.integers(len(names)))]]
                start = [int(rng.integers(n - p + 1)) for n, p in zip(image.shape[1:], patch, strict=True)]
                box = (slice(None), *(slice(s, s + p) for s, p in zip(start, patch, strict=True)))
                images[i], masks[i] = image[box], labels[box]
        return 16

    return Case("nnU-Net v2 blosc2", run)
