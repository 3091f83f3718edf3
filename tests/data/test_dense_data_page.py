"""docs/dense_data.md is true: each layout that it shows is read, and each command of it is composed."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from finetune.config import build, compose
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "dense_data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^### ([^\n]+)\n(.*?)(?=^### |\Z)", PAGE))
FOLDERS = {"Pascal VOC": "JPEGImages"}


def commands(text: str) -> list[list[str]]:
    lines = [line for block in re.findall(r"(?s)```bash\n(.*?)```", text) for line in block.splitlines()]
    return [shlex.split(line)[3:] for line in lines]


@pytest.mark.parametrize("title", [title for title in SECTIONS if title != "Chest X-rays"])
def test_each_layout_is_read_by_its_command(title, tmp_path):
    (words,) = commands(SECTIONS[title])
    for name, text in re.findall(r"(?s)`([^`\n]+)`\n\n```\w+\n(.*?)```", SECTIONS[title]):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in ("a", "b"):
        file = tmp_path / FOLDERS.get(title, "images") / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (640, 480)).save(file)
    config = compose.plain(compose.compose([word.replace("DIR", str(tmp_path)) for word in words]))
    table = build.source(build.check(config)).table()
    boxes = {Path(path).stem: entry for path, entry in zip(table.paths, table.annotations["boxes"], strict=True)}
    ((label, *sides),) = boxes["a"].sides()
    assert (label, sides) == ("nodule", pytest.approx([10, 20, 100, 50], abs=1e-3))
    assert len(boxes["b"]) == 0
    if title in ("COCO", "A table of your own"):
        assert table.frame["patient"].tolist() == ["p1", "p2"]


def test_the_commands_of_chest_x_rays_are_composed():
    for words in commands(SECTIONS["Chest X-rays"]):
        config = compose.plain(compose.compose(words))
        assert build.source(build.check(config)).target == "boxes"
