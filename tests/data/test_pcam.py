import numpy as np
import pytest

from finetune.data.audit.audit import audit_table
from finetune.data.decoding.images import read_image
from finetune.data.sources.pcam import PCam
from finetune.errors import FinetuneError
from tests.data.making import noise

h5py = pytest.importorskip("h5py")
STEM = "camelyonpatch_level_2_split_"


def write(root, split, labels, slides=None):
    root.mkdir(exist_ok=True)
    images = noise(len(labels), 6, 6, 3, seed=len(labels))
    for part, values in (("x", images), ("y", np.array(labels, np.uint8).reshape(-1, 1, 1, 1))):
        path = root / f"{STEM}{split}_{part}.h5"
        path.unlink(missing_ok=True)  # HDF5 writes to no file that is open for reading
        with h5py.File(path, "w") as file:
            file[part] = values
    if slides:
        rows = [f"{i},0,0,True,True,{slide}" for i, slide in enumerate(slides)]
        (root / f"{STEM}{split}_meta.csv").write_text(
            "\n".join([",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *rows])
        )
    return images


def test_the_published_files(tmp_path):
    images = write(tmp_path, "train", [1, 0, 0], ["camelyon16_train_normal_033"] * 2 + ["camelyon16_train_tumor_1"])
    write(tmp_path, "valid", [0, 1], ["v1", "v2"])
    write(tmp_path, "test", [1], ["t1"])
    table = PCam(tmp_path).table()
    assert (table.classes, table.kind) == (["normal", "tumor"], "multiclass")
    assert table.frame["split"].tolist() == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert table.targets()[:, 1].tolist() == [1, 0, 0, 0, 1, 1]
    assert table.has_patients
    assert table.frame["patient"].nunique() == 5
    assert table.notes == []
    assert not audit_table(table).leaks
    np.testing.assert_array_equal(read_image(table.file(1)), images[1])


def test_without_slides_or_without_a_split(tmp_path):
    write(tmp_path / "pcam", "train", [1, 0], ["a", "b"])  # the folder that torchvision makes
    write(tmp_path / "pcam", "test", [0, 1])
    table = PCam(tmp_path).table()
    assert table.paths[0] == f"pcam/{STEM}train_x.h5::x/0"
    assert not table.has_patients
    assert table.notes == [
        f"{STEM}valid_x.h5 is absent: there is no val.",
        f"Not every split has its {STEM}*_meta.csv: slides are unknown and every patch counts as its own.",
    ]


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FinetuneError, match=r"has no camelyonpatch_level_2_split_\*_x.h5. Get them at"):
        PCam(tmp_path).table()
    (tmp_path / f"{STEM}train_x.h5.gz").write_bytes(b"")
    with pytest.raises(FinetuneError, match="They are still packed: gunzip them"):
        PCam(tmp_path).table()
    write(tmp_path, "train", [1, 0], ["a"])
    with pytest.raises(FinetuneError, match="has 1 rows for 2 patches"):
        PCam(tmp_path).table()
    write(tmp_path, "train", [1, 2])
    with pytest.raises(FinetuneError, match="y must hold one 0 or 1 per patch"):
        PCam(tmp_path).table()
    (tmp_path / f"{STEM}train_y.h5").write_bytes(b"text")
    with pytest.raises(FinetuneError, match="is damaged or not PatchCamelyon's"):
        PCam(tmp_path).table()
    (tmp_path / f"{STEM}train_y.h5").unlink()
    with pytest.raises(FinetuneError, match="the patches have no labels"):
        PCam(tmp_path).table()
    write(tmp_path, "train", [1, 0, 1])
    (tmp_path / f"{STEM}train_x.h5").write_bytes(b"text")
    with pytest.raises(FinetuneError, match="is damaged or cut short"):
        PCam(tmp_path).table()
