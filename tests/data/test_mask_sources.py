"""Masks in folders and tables: which regions they hold, whose they are, and every fault named."""

from pathlib import Path

import numpy as np
import pytest

from finetune.config import build, compose
from finetune.data.annotations import MaskFile
from finetune.data.cache.image_cache import ImageCache
from finetune.data.phantom.dataset import make_phantoms
from finetune.data.sources.csv_table import CsvTable
from finetune.data.sources.folder import Folder
from finetune.data.splits import assign_splits
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import noise, save, save_dicom

LEFT = np.zeros((6, 8), np.uint8)
LEFT[1:5, 1:3] = 1
RIGHT = np.zeros((6, 8), np.uint8)
RIGHT[2:5, 2:7] = 1


def read(table: SampleTable, row: int) -> np.ndarray:
    entry = table.annotations["mask"][row]
    assert isinstance(entry, MaskFile)
    return entry.read(table.root, table.regions, (6, 8))


def folder(root: Path, **options) -> SampleTable:
    return Folder(root, target="mask", **options).table()


def images(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        save(noise(6, 8, seed=seed), root / name)


def test_masks_of_the_same_name_wherever_they_are(tmp_path):
    images(tmp_path, "images/a.png", "images/sub/b.jpg", "images/c.1.tif")
    save(LEFT + 2 * RIGHT * (LEFT == 0), tmp_path / "masks/a.png")
    save(LEFT, tmp_path / "masks/sub/b.png")
    save(RIGHT * 2, tmp_path / "masks/c.1.png")
    table = folder(tmp_path)
    assert table.paths == ["images/a.png", "images/c.1.tif", "images/sub/b.jpg"]
    assert (table.kind, table.classes, table.other_targets) == ("none", [], {"mask": "mask"})
    assert table.regions.names == ["background", "region_1", "region_2"]
    assert any(note.startswith("Regions by the values of the masks: 1 is region_1, 2 is") for note in table.notes)
    np.testing.assert_array_equal(read(table, 1), RIGHT * 2)
    named = folder(tmp_path, regions=["background", "left", "right"])
    assert named.regions.names == ["background", "left", "right"]
    assert named.hash() != table.hash()
    assert not table.has_patients
    (tmp_path / "who.csv").write_text("path,patient\na.png,p\nc.1.tif,q\nb.jpg,p\n")
    assert folder(tmp_path, patients=tmp_path / "who.csv").frame["patient"].tolist() == ["p", "q", "p"]


def test_binary_masks_and_values_with_names(tmp_path):
    images(tmp_path, "images/a.png", "images/b.png")
    for name in "ab":
        save(LEFT * 255, tmp_path / f"masks/{name}.png")
    assert folder(tmp_path).regions.names == ["background", "foreground"]
    np.testing.assert_array_equal(read(folder(tmp_path), 0), LEFT)
    lung = folder(tmp_path, regions={"lung": 255})
    assert lung.regions.names == ["background", "lung"]
    np.testing.assert_array_equal(read(lung, 1), LEFT)
    save(LEFT + RIGHT * 2, tmp_path / "masks/b.png")  # 0, 1, 2 and 3
    save(LEFT * 3, tmp_path / "masks/a.png")
    bits = folder(tmp_path, regions={"left": [1, 3], "right": [2, 3]}, overlapping=True)
    assert (bits.regions.names, bits.regions.overlapping) == (["left", "right"], True)
    np.testing.assert_array_equal(read(bits, 1), LEFT + 2 * RIGHT)
    same = folder(tmp_path, regions=["left", "right"], overlapping=True)
    np.testing.assert_array_equal(read(same, 1), read(bits, 1))
    save(np.where(LEFT, 255, RIGHT).astype(np.uint8), tmp_path / "masks/a.png")
    save(RIGHT, tmp_path / "masks/b.png")
    ignoring = folder(tmp_path)
    assert ignoring.regions.names == ["background", "foreground"]
    assert read(ignoring, 0).max() == 255
    assert "255 is left out" in ignoring.notes[0]


def test_jpeg_masks_hold_one_region(tmp_path):
    square = np.zeros((32, 32), np.uint8)
    square[8:24, 8:24] = 255
    save(noise(32, 32), tmp_path / "images/a.png")
    save(square, tmp_path / "masks/a.jpg", quality=95)
    table = folder(tmp_path)
    entry = table.annotations["mask"][0]
    np.testing.assert_array_equal(entry.read(table.root, table.regions, (32, 32)), square > 0)
    with pytest.raises(FinetuneError, match="a JPEG changes the values of a mask"):
        folder(tmp_path, regions=["background", "a", "b"])


def test_a_folder_per_region(tmp_path):
    images(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    for name in "ab":
        save(LEFT * 255, tmp_path / f"masks/lung/{name}.png")
    for name in "ac":
        save(RIGHT, tmp_path / f"masks/heart/{name}.png")
    table = folder(tmp_path)
    assert (table.regions.names, table.regions.overlapping) == (["heart", "lung"], True)
    np.testing.assert_array_equal(read(table, 0), RIGHT + 2 * LEFT)
    assert [entry.unknown for entry in table.annotations["mask"]] == [(), (0,), (1,)]
    assert "Some images have masks of some regions only: unknown is heart in 1, lung in 1." in table.notes
    apart = folder(tmp_path, overlapping=False)
    assert apart.regions.names == ["background", "heart", "lung"]
    with pytest.raises(FinetuneError, match="heart and lung share"):
        read(apart, 0)
    one = folder(tmp_path, regions=["lung"])
    assert one.regions.names == ["lung"]
    np.testing.assert_array_equal(read(one, 0), LEFT)
    assert one.annotations["mask"][2] is None
    assert "1 images have no mask: they teach nothing and are not scored." in one.notes
    for options, message in (
        ({"regions": ["spine"]}, r"\['spine'\]: spine is none of the folders in masks/ heart, lung"),
        ({"regions": {"lung": 255}}, "gives values; with a mask per region it is a list of the folders"),
    ):
        with pytest.raises(FinetuneError, match=message):
            folder(tmp_path, **options)
    for number in range(9):
        save(LEFT, tmp_path / f"masks/r{number}/a.png")
    with pytest.raises(FinetuneError, match="there is 11 regions; masks of regions that overlap take up to 8"):
        folder(tmp_path)


def test_given_splits_and_patients_of_dicom(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for place in range(2):
            name = f"{split}/images/{place}.dcm"
            save_dicom(tmp_path / name, noise(6, 8, seed=number), PatientID=f"{split}{place}")
            save(LEFT, tmp_path / f"{split}/masks/{place}.png")
    table = folder(tmp_path)
    assert table.frame["split"].value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}
    assert table.has_patients
    assert table.frame.set_index("path").loc["val/images/1.dcm"].tolist() == ["val1", "val"]
    np.testing.assert_array_equal(read(table, 0), LEFT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: (r / "masks/a.png").rename(r / "masks/z.png"), r"1 of 2 images have no mask.*images/a.png.*/z.png"),
        (lambda r: save(LEFT, r / "masks/a.tif"), r"masks/a.png and masks/a.tif have one name"),
        (lambda r: save(LEFT, r / "images/b.bmp"), r"images/b.bmp and images/b.png have one name"),
        (lambda r: save(LEFT, r / "masks/lung/a.png"), r"has masks beside the folders lung"),
        (lambda r: (r / "images").rename(r / "pictures"), r"has no folder images/; it has: masks, pictures"),
        (lambda r: (r / "masks").rename(r / "labels"), r"has images/, but no folder masks/"),
        (lambda r: [save(LEFT * 0, r / f"masks/{n}.png") for n in "ab"], "none of the 2 masks .* marks anything"),
        (lambda r: save(noise(16, 16), r / "masks/a.png"), "too many to take each for a region"),
    ],
)  # fmt: skip
def test_faults_of_folders(tmp_path, make, message):
    images(tmp_path, "images/a.png", "images/b.png")
    for name in "ab":
        save(LEFT, tmp_path / f"masks/{name}.png")
    make(tmp_path)
    with pytest.raises(FinetuneError, match=message):
        folder(tmp_path)


def test_what_lacks_the_other_is_counted(tmp_path):
    images(tmp_path, "images/a.png", "images/b.png")
    save(LEFT, tmp_path / "masks/a.png")
    save(LEFT, tmp_path / "masks/x.png")
    (tmp_path / "masks/notes.txt").write_text("")
    table = folder(tmp_path, on_bad="skip")
    assert table.paths == ["images/a.png"]
    for note in (
        "Left out (data.on_bad=skip): 1 of 2 images have no mask of their name: images/b.png.",
        "1 masks have no image of their name: masks/x.png.",
        "1 files that are no images (.txt) are left out.",
    ):
        assert note in table.notes
    for options, message in (
        ({"target": "boxes"}, "data.target=boxes is not known"),
        ({"regions": ["a"]}, "need data.target=mask"),
    ):
        with pytest.raises(FinetuneError, match=message):
            Folder(tmp_path, **options)


# -- tables ------------------------------------------------------------------------------------------------------------


def csv(root: Path, text: str, mask, **options) -> SampleTable:
    (root / "t.csv").write_text(text)
    return CsvTable(root / "t.csv", target="mask", mask=mask, **options).table()


def test_a_column_of_paths(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    save(LEFT * 7, tmp_path / "m/a.png")
    text = f"path,who,mask,age\na.png,p,{tmp_path}/m/a.png,40\nb.png,p,m/a.png,41\nc.png,q,,50\n"
    table = csv(tmp_path, text, "mask", patient="who", metadata=["age"], regions={"lung": 7})
    np.testing.assert_array_equal(read(table, 1), LEFT)
    assert table.annotations["mask"][0].path == "m/a.png"
    assert table.annotations["mask"][2] is None
    assert table.frame["patient"].tolist() == ["p", "p", "q"]
    assert table.metadata == ["age"]
    assert table.regions.names == ["background", "lung"]
    assert not any("Columns not used" in note for note in table.notes)


def test_columns_of_regions_and_runs(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    save(LEFT * 255, tmp_path / "m/a.png")
    text = "path,lung_mask,heart_mask\na.png,m/a.png,1 2\nb.png,-1,\nc.png,,\n"
    table = csv(tmp_path, text, ["lung_mask", "heart_mask"], regions=["lung", "heart"])
    assert (table.regions.names, table.regions.overlapping) == (["lung", "heart"], True)
    expected = LEFT.copy()
    expected[:2, 0] |= 2
    np.testing.assert_array_equal(read(table, 0), expected)
    second = table.annotations["mask"][1]
    assert second.known(table.regions).tolist() == [True, False]
    assert not read(table, 1).any()  # looked at, and nothing there
    assert table.annotations["mask"][2] is None
    alone = csv(tmp_path, text, "heart_mask")
    assert alone.regions.names == ["background", "heart_mask"]
    assert read(alone, 0).sum() == 2
    for column, options, message in (
        (["lung_mask"], {"regions": ["a", "b"]}, r"must be 1 name\(s\), one for each column"),
        ("lung_mask", {}, r"holds paths in 1 rows and runs of pixels in 1"),
        ("spine", {}, "data.mask=spine is not a column"),
        (None, {}, "data=csv needs data.mask=COLUMN"),
        ("lung_mask", {"label": "x"}, "not of data.target=mask"),
    ):
        with pytest.raises(FinetuneError, match=message):
            csv(tmp_path, text, column, **options)
    with pytest.raises(FinetuneError, match=r"needs data.label=COLUMN. data.mask is of data.target=mask"):
        CsvTable(tmp_path / "t.csv", mask="lung_mask")


# -- phantoms and the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantoms(
        tmp_path_factory.mktemp("set") / "phantom", n_images=24, size=48, seed=3, workers=1, masks=True
    )


@pytest.mark.parametrize(
    "words",
    [
        ["data=folder", "data.root=ROOT", "data.regions=[lung,heart]", "data.patients=ROOT/masks.csv"],
        ["data=csv", "data.table=ROOT/masks.csv", "data.mask=[lung,heart]", "data.patient=patient"],
    ],
)
def test_phantoms_are_read_split_and_cached_from_what_is_typed(phantoms, words):
    typed = [word.replace("ROOT", str(phantoms)) for word in [*words, "data.target=mask"]]
    table = build.source(build.check(compose.plain(compose.compose(typed)))).table()
    assert table.synthetic
    assert table.has_patients
    assert table.regions.names == ["lung", "heart"]
    split = assign_splits(table, seed=0)
    p = Preprocessing(image_size=48)
    masks = ImageCache.build(split, p, "off").masks
    assert masks.known.all()
    assert masks.shown.all()
    np.testing.assert_array_equal(masks[0], split.annotations["mask"][0].read(split.root, split.regions))
    assert 0.1 < masks.pixels[:, 0].mean() / 48**2 < 0.4


def test_another_target_than_the_set_has_is_named(tmp_path):
    words = ["data=kermany", f"data.root={tmp_path}", "data.target=mask"]
    with pytest.raises(FinetuneError, match=r"data.target=mask: data=kermany gives classes only"):
        build.check(compose.plain(compose.compose(words)))
