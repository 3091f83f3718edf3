"""job=preview: audit, first batch, trainable parameters per phase, cost; and no other files."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from finetune.__main__ import main
from tests.jobs.test_fit import TINY, draw


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images")
    return tmp_path


def test_preview_describes_a_fit_and_changes_no_other_files(place, capsys):
    before = {path for path in place.rglob("*") if path.is_file()}
    words = ["job=preview", *TINY, "trainer.max_epochs=4", "data=folder", "data.root=images", "steps=2"]
    main([*words, "data.batch_size=4", "finetuning=head_then_full", "finetuning.phases.full.epoch=2"])
    (run,) = (place / "outputs" / "preview").iterdir()
    new_files = {path for path in place.rglob("*") if path.is_file()} - before
    assert {path.name for path in new_files} == {
        "config.yaml",
        "environment.json",
        "log.txt",
        "audit.json",
        "batch.png",
        "preview.json",
    }
    assert all(path.parent == run for path in new_files)
    preview = json.loads((run / "preview.json").read_text())
    head, full = preview["learns"]
    assert (head["name"], head["epoch"], full["epoch"]) == ("head", 0, 2)
    assert head["trained"] == head["parts"]["head"] == 64 * 2 + 2
    assert full["trained"] == full["all"] == sum(full["parts"].values())
    cost = preview["cost"]
    assert cost["steps_per_epoch"] == 11  # 42 of 60 images train
    assert cost["timed_steps"] == 2
    assert 0 < cost["seconds_per_step"] * 11 <= cost["seconds_per_epoch"]
    assert cost["peak_memory_mib"] > 100
    output = capsys.readouterr().out
    assert "from epoch 0: head trains 130 of" in output
    assert "s per epoch (11 steps" in output
    with Image.open(run / "batch.png") as sheet:
        assert sheet.size[0] > 600


def test_preview_shows_leaks_instead_of_stopping_at_them(place, capsys):
    for name in ("cold", "warm"):
        train, test = (place / "given" / split / name for split in ("train", "test"))
        test.mkdir(parents=True)
        shutil.copytree(place / "images" / name, train)
        for path in sorted(train.iterdir())[:6]:
            shutil.copy(path, test)
    main(["job=preview", *TINY, "data=folder", "data.root=given", "steps=1"])
    assert "A fit would stop here" in capsys.readouterr().out
    (run,) = Path("outputs/preview").iterdir()
    assert json.loads((run / "audit.json").read_text())["leaks"]


def test_copies_are_moved_together_where_the_split_is_generated(place, capsys):
    """Every image with an equal copy and a brighter one: a generated split keeps them together."""
    for path in [*(place / "images").rglob("*.png")][:20]:
        (path.parent / f"copy_{path.name}").write_bytes(path.read_bytes())
        with Image.open(path) as image:
            image.point(lambda value: min(255, value + 3)).save(path.parent / f"brighter_{path.name}")
    main(["job=preview", *TINY, "data=folder", "data.root=images", "steps=1"])
    assert "changed to the split of a copy" in capsys.readouterr().out
    (run,) = Path("outputs/preview").iterdir()
    audit = json.loads((run / "audit.json").read_text())
    assert audit["leaks"] == []
    assert any("near copies are in the same split" in sentence for sentence in audit["warnings"])
    assert (run / "near_copies.png").exists()


def test_every_broken_file_is_listed(place, capsys):
    folder = place / "images" / "cold"
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "loop.png").symlink_to("loop.png")
    claim = b"IHDR" + struct.pack(">II", 20_000, 20_000) + whole[24:29]
    (folder / "bomb.png").write_bytes(whole[:12] + claim + struct.pack(">I", zlib.crc32(claim)) + whole[33:])
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("P", (9, 9)).save(folder / "still.gif")
    main(["job=preview", *TINY, "data=folder", "data.root=images", "steps=1"])
    output = capsys.readouterr().out
    assert "A fit would stop here (data.on_bad=stop): 5 images cannot be read." in output
    (run,) = Path("outputs/preview").iterdir()
    bad = {item["path"]: item["reason"] for item in json.loads((run / "audit.json").read_text())["bad_images"]}
    assert set(bad) == {f"cold/{name}.png" for name in ("cut", "empty", "text", "loop", "bomb")}
    assert "link that leads in a circle" in bad["cold/loop.png"]
    assert "400 megapixels" in bad["cold/bomb.png"]
    inside = place / "inside"
    inside.mkdir()
    (inside / "t.csv").write_text("path,label\n../secret.png,a\nmine.png,b\n")
    for path in (place / "secret.png", inside / "mine.png"):
        path.write_bytes(whole)
    with pytest.raises(SystemExit):
        main(["job=preview", *TINY, "data=csv", "data.table=inside/t.csv", "data.label=label"])
    assert "../secret.png" in capsys.readouterr().err
