"""job=predict of many images: whatever names them, however often it is stopped, whoever takes part: the same bytes."""

import json
import multiprocessing
import os
import signal
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from finetune.config import compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError
from finetune.evaluation.answers import at_operating_point
from finetune.jobs import predict as job
from finetune.model_file import load
from finetune.runs.folder import RunFolder
from finetune.steps import prediction_parts
from finetune.steps.prediction_parts import Parts
from tests import package_cases as cases

N = 75  # images, among them an unreadable one; chunks of 16, so the last has 11
LINKS = ("model.safetensors", "other.safetensors", "images")
SIZES = [(9, 12), (30, 8), (16, 16)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """model.safetensors, another one, and images/ with gray and coloured PNGs."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    cases.multilabel().save(folder / "model.safetensors")
    cases.multiclass().save(folder / "other.safetensors")
    (folder / "images" / "deep").mkdir(parents=True)
    for i in range(N):
        size = (*SIZES[i % 3], 3)[: 2 + i % 2]
        name = f"images/{'deep/' if i % 5 == 0 else ''}{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / name)
    (folder / "images/040.png").write_bytes(b"no image")
    (folder / "images/notes.md").write_text("no image by its name")
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """An empty working folder beside links to all of it."""
    for name in LINKS:
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@lru_cache
def configuration() -> dict[str, Any]:
    words = ["job=predict", "input=x", "model=model.safetensors", "batch_size=2", "trainer.accelerator=cpu"]
    return compose.plain(compose.compose(words))


def run(*words: str, name: str = "run") -> None:
    """The job with these words, composed once for all tests."""
    given = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}
    Path(name).mkdir(exist_ok=True)
    job.predict(parse({**configuration(), **given}), RunFolder(Path(name)), list(words))


@pytest.fixture(scope="module")
def whole(place):
    """The bytes of an uninterrupted run."""
    old = os.getcwd()
    os.chdir(place)
    run("input=images/", "output=whole.csv")
    os.chdir(old)
    assert not (place / "whole.csv.part").exists()
    return (place / "whole.csv").read_bytes()


def test_each_row_has_the_answers_of_predict(whole, place):
    table = pd.read_csv(place / "whole.csv", keep_default_na=False)
    files = sorted(path for path in (place / "images").rglob("*.png"))
    assert table["path"].tolist() == [f"images/{path.relative_to(place / 'images')}" for path in files]
    assert table.loc[table["error"] != "", "path"].tolist() == ["images/040.png"]
    model, good = load(place / "model.safetensors"), table[table["error"] == ""]
    answers = model.predict([place / path for path in good["path"]])
    for column in (c for c in answers if c.startswith("prob_")):
        np.testing.assert_allclose(good[column].astype(float), answers[column], atol=1e-6)
    assert good["decision"].tolist() == answers["decision"].tolist()


@pytest.mark.parametrize("point", [0, 2, 4])
def test_a_stopped_run_goes_on_without_a_repeat_or_a_gap(here, whole, point, monkeypatch, capsys):
    write, written = Parts.write, []

    def stopping(parts, number, facts, content):
        if len(written) == point:
            raise KeyboardInterrupt
        written.append(number)
        write(parts, number, facts, content)

    monkeypatch.setattr(Parts, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("input=images/", "output=out.csv")
    assert not Path("out.csv").exists()
    assert Path("out.csv.part").is_dir() == (point > 0)  # nothing done, nothing left
    if point:
        assert f"{point} of 5 parts are predicted, in out.csv.part. The same command" in capsys.readouterr().out
    monkeypatch.setattr(Parts, "write", lambda *given: written.append(given[1]) or write(*given))
    run("input=images/", "output=out.csv")
    assert written == [0, 1, 2, 3, 4]
    assert Path("out.csv").read_bytes() == whole
    assert {path.name for path in here.iterdir()} == {
        "images",
        "model.safetensors",
        "other.safetensors",
        "out.csv",
        "run",
    }
    assert json.loads(Path("run/environment.json").read_text())["unreadable"].keys() == {"images/040.png"}


def test_processes_share_a_list_and_the_part_of_a_killed_one_is_done_again(here, whole, monkeypatch):
    monkeypatch.setattr(prediction_parts, "POLL_SECONDS", 0.02)
    write = Parts.write

    def hanging(parts, number, facts, content):
        if len(parts._claimed) > 2 and number > 0:
            time.sleep(60)  # with the lock of this chunk and of those that are read ahead
        write(parts, number, facts, content)
        time.sleep(0.1)

    def other():
        Parts.write = hanging
        run("input=images/", "output=out.csv", name="other")

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    deadline = time.monotonic() + 30
    while not Path("out.csv.part/00000000").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killer = threading.Timer(1.0, lambda: os.kill(process.pid, signal.SIGKILL))
    killer.start()
    begun, mine = time.monotonic(), []
    monkeypatch.setattr(Parts, "write", lambda *given: mine.append(given[1]) or write(*given))
    run("input=images/", "output=out.csv")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert time.monotonic() - begun > 0.5  # it waited for what the other had claimed
    assert 0 not in mine
    assert sorted(mine) == sorted(set(mine))
    assert Path("out.csv").read_bytes() == whole
    assert not Path("out.csv.part").exists()


def test_two_processes_end_with_one_output(here, whole, monkeypatch):
    monkeypatch.setattr(prediction_parts, "POLL_SECONDS", 0.02)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=run, args=("input=images/", "output=out.csv"), kwargs={"name": f"run{i}"})
        for i in (1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert Path("out.csv").read_bytes() == whole
    assert not Path("out.csv.part").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["model=other.safetensors"], "another model"),
        (["input=images/deep"], "another list of images"),
        (["batch_size=4"], "batch_size 2 and not 4"),
        (["fast=true"], "fast False and not True"),
    ],
)
def test_another_command_does_not_go_on(here, monkeypatch, words, what):
    write = Parts.write

    def stopping(parts, number, facts, content):
        write(parts, number, facts, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("input=images/", "output=out.csv")
    with pytest.raises(FinetuneError, match=f"unfinished prediction with {what}.*rm -r out.csv.part"):
        run("input=images/", "output=out.csv", *words)
    assert sorted(path.name for path in Path("out.csv.part").iterdir()) == ["00000000", "locks", "state.json"]


def test_the_formats_hold_the_same(here, whole):
    for suffix in ("jsonl", "parquet"):
        run("input=images/", f"output=out.{suffix}")
    csv = pd.read_csv(here / "images" / ".." / "whole.csv", keep_default_na=False)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    parquet = pyarrow.parquet.read_table("out.parquet").to_pydict()
    assert list(lines[0]) == csv.columns.tolist() == list(parquet)
    bad = csv.index[csv["error"] != ""][0]
    for column in csv:
        text, of_json, of_parquet = csv[column].tolist(), [row[column] for row in lines], parquet[column]
        if column.startswith(("prob_", "calibrated_")):
            assert of_json == of_parquet
            assert (text.pop(bad), of_json.pop(bad)) == ("", None)
            np.testing.assert_allclose([float(cell) for cell in text], of_json, rtol=1e-8)
        else:
            assert of_json == of_parquet
            assert [cell or "" for cell in of_json] == text
    with pytest.raises(FinetuneError, match=r"output=out.txt must end in .csv, .jsonl, .parquet"):
        run("input=images/", "output=out.txt")


def test_a_table_keeps_its_columns_and_no_path_leaves_the_root(here):
    Path("inside").mkdir()
    Path("inside/a.png").write_bytes(Path("images/001.png").read_bytes())
    Path("secret.png").write_bytes(Path("images/001.png").read_bytes())
    Path("inside/link.png").symlink_to(here / "secret.png")
    Path("list.csv").write_text(f"site,path\nnorth,a.png\nsouth,../secret.png\n,{here}/secret.png\neast,link.png\n")
    run("input=list.csv", "root=inside", "output=out.csv")
    table = pd.read_csv("out.csv", keep_default_na=False)
    assert table.columns.tolist()[-2:] == ["site", "error"]
    assert table["path"].tolist() == ["a.png", "../secret.png", f"{here}/secret.png", "link.png"]
    assert table["site"].tolist() == ["north", "south", "", "east"]
    assert table["error"].tolist() == ["", *["lies outside of root=inside"] * 3]
    Path("list.csv").write_text("path,decision\ninside/a.png,yes\n")
    with pytest.raises(FinetuneError, match="the column decision is one of the output's too"):
        run("input=list.csv", "output=out.csv")
    Path("list.csv").write_text("path,site\ninside/a.png,yes,no\n")
    with pytest.raises(FinetuneError, match=r"list.csv: row 2 has 3 cells for 2 columns"):
        run("input=list.csv", "output=out.csv")


def test_decisions_by_a_named_operating_point(here, place):
    model = load(place / "model.safetensors")
    first, *_ = points = list(model.answers.operating_points)
    assert at_operating_point(model.answers, first).thresholds
    with pytest.raises(FinetuneError, match=f"operating_point=nope is not known.* {points[-1]}"):
        run("input=images/", "output=out.csv", "operating_point=nope")
    run("input=images/deep", "output=out.csv", f"operating_point={first}")
    with pytest.raises(FinetuneError, match=f"operating_point={first} has no effect"):
        run("model=other.safetensors", "input=images/", "output=out.csv", f"operating_point={first}")


def test_heat_maps_lie_beside_the_table(here):
    Path("list.txt").write_text(f"images/001.png\n\n{here}/images/002.png\nimages/040.png\n")
    run("input=list.txt", "output=out.csv", "heatmaps=heat")
    table = pd.read_csv("out.csv", keep_default_na=False)
    assert table["heatmap"].tolist()[0::2] == ["images/001.png.jpg", ""]
    side = load("model.safetensors").preprocessing.image_size
    for name in table["heatmap"][:2]:
        with Image.open(Path("heat") / name) as image:
            assert (image.format, image.size) == ("JPEG", (side, side))
    Path("list.txt").write_text(f"001.png\n{here}/images/002.png\n")
    run("input=list.txt", "root=images", "output=out.csv", "heatmaps=heat2")
    run("input=[images/001.png,images/deep/000.png]", "output=out.csv", "heatmaps=heat2")
    assert sum(1 for _ in Path("heat2").rglob("*.jpg")) == 3
    assert all(Path("heat2").resolve() in path.resolve().parents for path in Path("heat2").rglob("*.jpg"))
    with pytest.raises(FinetuneError, match="heatmaps=images/heat lies in input=images"):
        run("input=images", "output=out.csv", "heatmaps=images/heat")
    with pytest.raises(FinetuneError, match="finding=x is not known"):
        run("input=images/deep", "output=out.csv", "heatmaps=heat", "finding=x")
    with pytest.raises(FinetuneError, match="heatmaps=DIR"):
        run("input=images/deep", "output=out.csv", "finding=x")


def test_folded_norms_give_the_same_probabilities_up_to_rounding(here, whole, place):
    run("input=images/", "output=fast.csv", "fast=true")
    fast, table = pd.read_csv("fast.csv"), pd.read_csv(place / "whole.csv")
    for column in (c for c in table if c.startswith("prob_")):
        np.testing.assert_allclose(fast[column], table[column], atol=1e-5)
