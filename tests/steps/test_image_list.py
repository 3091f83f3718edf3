"""What `input=` may name, and the order in which its images come."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.decoding.images import read_image
from finetune.errors import BadImage, FinetuneError
from finetune.steps.image_files import common_folder
from finetune.steps.image_list import read_list


@pytest.fixture
def here(tmp_path, monkeypatch):
    """d/a/x.png, d/a.png, d/b.PNG, d/notes.md, three.npz, two.zip."""
    monkeypatch.chdir(tmp_path)
    Path("d/a").mkdir(parents=True)
    for i, name in enumerate(("d/a/x.png", "d/a.png", "d/b.PNG")):
        Image.fromarray(np.full((4, 5), i, np.uint8)).save(name)
    Path("d/notes.md").touch()
    Path("d/.hidden").touch()
    np.savez("three.npz", images=np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4))
    with zipfile.ZipFile("two.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("d/b.PNG", "in/b.PNG")
        archive.write("d/a.png", "a.png")
        archive.writestr("in/readme.md", "no image")
        archive.writestr("../evil.png", Path("d/a.png").read_bytes())
    return tmp_path


def test_a_nameless_column_is_left_out(here):
    """As the index of a DataFrame is, written beside its columns."""
    Path("d/list.csv").write_text(",path,age\n0,a.png,7\n")
    found, images = names("d/list.csv")
    assert len(found) == 1
    assert images.columns == ["age"]


def names(value, root=None, chunk=2):
    with read_list(value, root, chunk) as images:
        assert images.n_chunks == -(-len(images) // chunk)
        entries = [entry for number in range(images.n_chunks) for entry in images.entries(number)]
        assert len(entries) == len(images)
        return [entry.name for entry in entries], images


def test_folders_files_patterns_and_members(here):
    listed, images = names("d")
    assert listed == sorted(map(str, Path("d").rglob("*.[pP][nN][gG]")), key=lambda path: Path(path).parts)
    assert (listed, images.others) == (["d/a/x.png", "d/a.png", "d/b.PNG"], 1)
    assert names(["d/b.PNG", "d/a"])[0] == ["d/b.PNG", "d/a/x.png"]
    assert names("d/**/*.png")[0] == ["d/a.png", "d/a/x.png"]
    assert names("d/*")[1].others == 1
    assert names("three.npz::images")[0] == [f"three.npz::images/{i}" for i in range(3)]
    assert names("three.npz::images/2")[0] == ["three.npz::images/2"]
    listed, images = names("two.zip")
    assert (listed, images.others) == (["two.zip::in/b.PNG", "two.zip::a.png", "two.zip::../evil.png"], 1)
    assert [int(read_image(name).max()) for name in listed] == [2, 1, 1]
    assert not list(here.parent.glob("evil.png"))


def test_lists_begin_at_their_own_folder_or_at_the_root(here, monkeypatch):
    Path("d/list.txt").write_text("\ufeffa.png\n\n  a/x.png\r\n", encoding="utf-8")
    assert names("d/list.txt")[0] == ["a.png", "a/x.png"]
    Path("d/list.csv").write_text('site;path\n"x;y";b.PNG\n')
    with read_list(["d/list.csv", "d/a"], None, 8) as images:
        entries = images.entries(0)
        assert images.images(entries) == [Path("d/b.PNG"), Path("d/a/x.png")]
        assert ([entry.cells for entry in entries], images.columns) == ([{"site": "x;y"}, {}], ["site"])
    monkeypatch.setattr("sys.stdin", io.StringIO("d/a.png\n../secret.png\n"))
    with read_list("-", ".", 8) as images:
        good, bad = images.images(images.entries(0))
        assert good == Path("./d/a.png")
        assert isinstance(bad, BadImage)
    assert common_folder("d/list.csv") == common_folder("d") == common_folder("d/**/*.png") == here / "d"
    assert (common_folder("-"), common_folder("d/list.txt", "d/a")) == (here, here / "d/a")
    assert common_folder("three.npz::images") == here / "three.npz::images"


def test_the_digest_is_of_names_cells_and_containers(here):
    digests = {names(value)[1].digest for value in ("d", "d/a", "three.npz::images", "two.zip")}
    assert len(digests) == 4
    assert names("d")[1].digest in digests
    np.savez("three.npz", images=np.zeros((3, 4, 4), np.uint8))
    assert names("three.npz::images")[1].digest not in digests


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"input=\[\] names nothing. Name an image"),
        ("none", "input=none does not exist"),
        ("three.npz", r"Name the one that holds the images: three.npz::KEY"),
        ("three.npz::labels", "is missing: the file has the arrays images"),
        ("x/*.png", "matches no image"),
        ("empty", "input=empty holds no images. Looked below it for .bmp"),
        ("broken.zip", "is no zip file, or damaged"),
        ("latin.txt", "is not UTF-8"),
        ("other.csv", "path=path is not a column of other.csv. It has: file"),
        ("blank.csv", "row 2 has no path"),
        ("twice.csv", "has the column 'site' twice"),
    ],
)
def test_what_cannot_be_listed_is_named(here, value, message):
    Path("empty").mkdir()
    Path("broken.zip").write_bytes(b"PK")
    Path("latin.txt").write_bytes("é.png".encode("latin-1"))
    Path("other.csv").write_text("file\na.png\n")
    Path("twice.csv").write_text("site,path,site\na,a.png,b\n")
    Path("blank.csv").write_text("site,path\nnorth,\n")
    with pytest.raises(FinetuneError, match=message):
        names(value)
    with pytest.raises(FinetuneError, match="root=none is no folder"):
        names(value, "none")


def test_a_damaged_member_of_a_zip_is_a_bad_image(here):
    data = bytearray(Path("two.zip").read_bytes())
    data[60] ^= 255  # within the first member
    Path("two.zip").write_bytes(data)
    with pytest.raises(BadImage, match="damaged, cut short or encrypted"):
        read_image("two.zip::in/b.PNG")
    with pytest.raises(BadImage, match="has no such file"):
        read_image("two.zip::none.png")
    with pytest.raises(BadImage, match="is missing"):
        read_image("none.zip::none.png")
