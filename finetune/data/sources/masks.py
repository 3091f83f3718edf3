"""What sources of masks share: which regions there are, by the user's names or by what masks hold, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from finetune.data.annotations import Layer, MaskFile, Regions
from finetune.data.masks import LOSSY, read_mask, stored_values
from finetune.data.phantom.dataset import is_phantom
from finetune.data.regions import BACKGROUND, IGNORED
from finetune.data.sources.listing import shorten
from finetune.data.table import SampleTable
from finetune.errors import BadImage, FinetuneError, one_of

MASK = "mask"
"""Name of the target and of its annotation."""
FOREGROUND = "foreground"
"""The region of masks with one value, where nobody names it."""
MAX_UNNAMED = 32  # values in the masks that count as regions without being named
THREADS = 8

Given = list[str] | Mapping[str, int | list[int]] | None
"""data.regions: names in the order of the pixel values 0, 1, ..., or name -> value(s) in the files; None looks."""


def check_target(target: str, choices: Sequence[str]) -> None:
    """Refuse a `data.target` that the source does not have."""
    if target not in choices:
        raise one_of("data.target", target, choices)


def layered(given: Given, names: Sequence[str], overlapping: bool | None, what: str) -> Regions:
    """The regions of masks that stand one region a file (or cell); overlapping unless the user says otherwise.

    `names` are those that there are, of the `what` (folders, columns); `given` chooses some of them.

    Raises:
        FinetuneError: a chosen region that is not there, or values, which single regions have none of.
    """
    if isinstance(given, Mapping):
        raise FinetuneError(
            f"data.regions={dict(given)} gives values; with a mask per region it is a list of the {what}: "
            f"[{','.join(names)}]."
        )
    chosen = [str(name) for name in given or names if str(name) != BACKGROUND]
    if absent := [name for name in chosen if name not in names]:
        raise FinetuneError(
            f"data.regions={list(given or ())}: {shorten(absent)} is none of the {what} {shorten(names, 12)}."
        )
    return Regions([BACKGROUND, *chosen]) if overlapping is False else Regions(chosen, overlapping=True)


def layers_of(parts: Mapping[str, Layer | None], regions: Regions) -> MaskFile | None:
    """The mask of an image whose regions stand apart; a region without a layer is unknown. None where all are."""
    numbers = {name: number for number, name in enumerate(regions.names) if name != BACKGROUND}
    known = {number: parts.get(name) for name, number in numbers.items()}
    layers = tuple((number, layer) for number, layer in known.items() if layer is not None)
    if not layers:
        return None
    return MaskFile(layers=layers, unknown=tuple(number for number, layer in known.items() if layer is None))


@dataclass(frozen=True)
class Whole:
    """Masks with all regions of an image in one file."""

    regions: Regions
    values: tuple[tuple[int, int], ...] | None = None
    """As in MaskFile."""
    notes: tuple[str, ...] = ()

    def mask(self, path: str) -> MaskFile:
        """The mask that a file holds. The values of a JPEG are not exact: it holds a single region."""
        if not path.lower().endswith(LOSSY):
            return MaskFile(path, values=self.values)
        first = int(not self.regions.overlapping)
        if len(self.regions) - first != 1:
            raise FinetuneError(
                f"{path}: a JPEG changes the values of a mask; masks of {shorten(self.regions.names, 8)} must be PNG "
                "or TIFF."
            )
        return MaskFile(layers=((first, Layer(path)),))


def whole(given: Given, overlapping: bool | None, root: Path, paths: Iterable[str]) -> Whole:
    """The regions of masks with all regions in one file (`paths`, below `root`); exclusive unless the user says
    otherwise.

    Raises:
        FinetuneError: values beyond 0 to 255 or of two regions; bit fields without names; too many values to be
            regions.
    """
    if isinstance(given, Mapping):
        return _named(given, bool(overlapping))
    if given:
        return Whole(Regions([str(name) for name in given], bool(overlapping)))
    if overlapping:
        raise FinetuneError(
            "data.overlapping=true needs data.regions=[NAME,...]: bit 0 of a mask's pixels is the first of them."
        )
    return _by_values(root, list(paths))


def _named(given: Mapping[str, int | list[int]], overlapping: bool) -> Whole:
    values_of = {str(name): [value] if isinstance(value, int) else list(value) for name, value in given.items()}
    taken = [value for values in values_of.values() for value in values]
    if wrong := [value for value in taken if not 0 <= value <= 255]:
        raise FinetuneError(f"data.regions={dict(given)}: {shorten(wrong)} is no value of a mask of 8 bits, 0 to 255.")
    if overlapping:
        regions = Regions(list(values_of), overlapping=True)
        bits: dict[int, int] = {} if 0 in taken else {0: 0}
        for number, values in enumerate(values_of.values()):
            for value in values:
                bits[value] = bits.get(value, 0) | 1 << number
        return Whole(regions, tuple(sorted(bits.items())))
    if twice := sorted({value for value in taken if taken.count(value) > 1}):
        raise FinetuneError(
            f"data.regions={dict(given)}: value {shorten(twice)} means two regions; data.overlapping=true allows that."
        )
    names = [BACKGROUND, *(name for name in values_of if name != BACKGROUND)]
    values_of.setdefault(BACKGROUND, [] if 0 in taken else [0])
    numbers = {value: number for number, name in enumerate(names) for value in values_of[name]}
    numbers.setdefault(IGNORED, IGNORED)
    return Whole(Regions(names), tuple(sorted(numbers.items())))


def _by_values(root: Path, paths: list[str]) -> Whole:
    """Every mask is read: the values are the regions. What cannot be read is left for decoding to speak of."""
    if any(path.lower().endswith(LOSSY) for path in paths):
        return _named({FOREGROUND: 255}, overlapping=False)

    def read_values(path: str) -> list[int]:
        try:
            return stored_values(read_mask(root / path))
        except BadImage:
            return []

    with ThreadPoolExecutor(THREADS) as threads:
        values = sorted(set().union(*threads.map(read_values, paths)) - {0})
    shown = [value for value in values if value != IGNORED] or values
    if not shown:
        raise FinetuneError(
            f"none of the {len(paths):,} masks under {root} marks anything: all that can be read are 0 throughout."
        )
    if len(shown) > MAX_UNNAMED:
        raise FinetuneError(
            f"the masks under {root} hold {len(shown)} values ({shorten(shown, 8)}), too many to take each for a "
            "region. Name the regions: data.regions=[background,NAME,...] or data.regions={background: 0, NAME: VALUE}."
        )
    names = [FOREGROUND] if len(shown) == 1 else [f"region_{value}" for value in shown]
    each = shorten((f"{value} is {name}" for value, name in zip(shown, names, strict=True)), 12)
    ignored = " 255 is left out." if IGNORED in values and IGNORED not in shown else ""
    note = f"Regions by the values of the masks: {each}.{ignored} data.regions={{NAME: VALUE}} names them."
    by_value = _named(dict(zip(names, shown, strict=True)), overlapping=False)
    return Whole(by_value.regions, by_value.values, (note,))


def with_masks(table: SampleTable, masks: Sequence[MaskFile | None], regions: Regions) -> SampleTable:
    """The checked table of images with masks as its one target. What is below a synthetic set's folder is synthetic.

    Raises:
        FinetuneError: no image has one.
    """
    if not any(mask is not None for mask in masks):
        raise FinetuneError(f"table {table.name}: none of its {len(table):,} images has a mask (root: {table.root}).")
    return replace(
        table,
        notes=[*table.notes, *_unknown(masks, regions)],
        synthetic=table.synthetic or is_phantom(table.root) is not None,
        annotations={**table.annotations, MASK: list(masks)},
        other_targets={MASK: "mask"},
        regions=regions,
    ).check()


def _unknown(masks: Sequence[MaskFile | None], regions: Regions) -> list[str]:
    """The sentences on images of which something is not known."""
    notes = []
    if without := sum(mask is None for mask in masks):
        notes.append(f"{without:,} images have no mask: they teach nothing and are not scored.")
    counts = {
        name: sum(mask is not None and number in mask.unknown for mask in masks)
        for number, name in enumerate(regions.names)
    }
    if lacking := [f"{name} in {count:,}" for name, count in counts.items() if count]:
        end = "" if regions.overlapping else "; nothing of these is used, since the regions exclude each other"
        notes.append(f"Some images have masks of some regions only: unknown is {shorten(lacking, 8)}{end}.")
    return notes


def key_of(path: str) -> str:
    """What image and mask share: the path without its suffix."""
    return str(PurePosixPath(path).with_suffix(""))
