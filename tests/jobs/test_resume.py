"""Resuming a run: nothing in its folder changes before everything is checked, above all its data."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.config import build
from finetune.config.settings import parse
from finetune.errors import FinetuneError
from finetune.jobs import resume
from finetune.pages import report
from finetune.runs import data_record
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, training
from tests.jobs.test_fit import TINY

FIT = [*TINY, "data=csv", "data.table=table.csv", "data.label=label", "data.patient=patient"]
FIT += ["evaluation.resamples=20", "evaluation.thumbnails=0", "evaluation.novelty=0"]


def draw(folder: Path) -> None:
    """table.csv and its images: 24 patients with two each, dark ones and bright ones."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(48):
        Image.fromarray((rng.integers(0, 150, (18, 18)) + 60 * (i // 2 % 2)).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append({"path": f"{i}.png", "label": ["cold", "warm"][i // 2 % 2], "patient": f"p{i // 2}"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working directory with a finished run of two epochs in `run`."""
    folder = tmp_path_factory.mktemp("finished")
    draw(folder)
    old = os.getcwd()
    os.chdir(folder)
    main([*FIT, "hydra.run.dir=run"])
    os.chdir(old)
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it to work in."""
    folder = tmp_path / "place"
    shutil.copytree(finished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def files(run: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(run.rglob("*")) if p.is_file()}


def check_refused(capsys, *words: str) -> str:
    """The message of a resume that fails; checks that the run folder is unchanged."""
    before = files(Path("run"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["resume=run", *words])
    assert files(Path("run")) == before
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.strip().splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.devices=0"], "trainer.devices=0"),
        (["data.num_workers=-1"], "data.num_workers=-1"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc should be"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null must be"),
        (["trainer.max_epochs=3", "trainer.devices=0"], "trainer.devices=0"),
        (["trainer.max_epochs=3", "logger=nothing"], "logger=nothing is not known"),
        (["~trainer.devices"], "cannot be set in a resume"),
        (["trainer.max_epochs=1"], "is complete already"),
        ([], "is complete already"),
    ],
)
def test_a_value_that_is_wrong_changes_nothing_in_a_finished_run(place, capsys, words, message):
    assert message in check_refused(capsys, *words)
    finetune.load("run")


def test_code_that_a_run_folder_names_is_not_run(place, capsys):
    """Only what is typed is imported, also where the folder was made with it."""
    Path("harmful.py").write_text("from pathlib import Path; Path('harmed').touch()")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("trust: []", "trust: [harmful]"))
    message = check_refused(capsys, "trainer.max_epochs=3")
    assert "used code of harmful, which runs only where it is typed: add trust=[harmful]" in message
    assert not Path("harmed").exists()


def change_table(column: str, rows: slice, value: str) -> None:
    table = pd.read_csv("table.csv", dtype=str)
    table.loc[rows, column] = value
    table.to_csv("table.csv", index=False)


def delete_rows() -> None:
    pd.read_csv("table.csv").iloc[:-8].to_csv("table.csv", index=False)


def add_row() -> None:
    shutil.copy("0.png", "new.png")
    with Path("table.csv").open("a") as file:
        file.write("new.png,cold,p99\n")


def lose_a_file() -> None:
    Path("7.png").unlink()


def repaint() -> None:
    Image.fromarray(np.arange(324, dtype=np.uint8).reshape(18, 18)).save("7.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete_rows, "8 images (40.png, 41.png, 42.png, ...) gone."),
        (add_row, "1 image (new.png) new"),
        (lose_a_file, "7.png"),
        (repaint, "1 image (7.png) with other pixels."),
        (lambda: change_table("patient", slice(6, 6), "p0"), "1 image (6.png) with another patient"),
        (lambda: change_table("label", slice(6, 7), "cold"), "resume=run: the data are not those"),
    ],
)
@pytest.mark.parametrize("killed", [True, False])
def test_a_run_is_not_resumed_with_other_data(place, capsys, monkeypatch, change, message, killed):
    """Rows deleted after a kill would give another split, with most test images trained on."""
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it trains"))
    if killed:
        Path("run/scores.json").unlink()
    change()
    assert message in check_refused(capsys, *([] if killed else ["trainer.max_epochs=3"]))


def test_labels_alone_are_covered_by_the_hash(place):
    settings = parse(RunFolder(Path("run")).read_config())
    table = prepare.load_table(build.source(settings).table(), settings.data, lambda _: None)
    environment = json.loads(Path("run/environment.json").read_text())
    assert data_record.table_hash(RunFolder(Path("run"))) == environment["data"]["hash"] == table.hash()


def test_a_failure_while_training_longer_keeps_the_results_and_the_next_resume_goes_on(place, monkeypatch, capsys):
    scores, model = Path("run/scores.json").read_bytes(), Path("run/model.safetensors").read_bytes()
    for name in (".best.ckpt.4711", ".epoch_002.ckpt.12"):
        (Path("run/checkpoints") / name).write_text("half")
    Path("run/.metrics.csv.31").write_text("half")
    Path("run/.note").write_text("mine")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stopped)
        with pytest.raises(SystemExit):
            main(["resume=run", "trainer.max_epochs=3"])
    assert Path("run/scores.json").read_bytes() == scores
    assert Path("run/model.safetensors").read_bytes() == model
    assert RunFolder(Path("run")).is_finished()
    assert not RunFolder(Path("run")).is_complete()
    finetune.load("run")
    assert {p.name for p in Path("run").rglob(".*")} == {".longer", ".note"}

    with monkeypatch.context() as patch:  # half replaced results are no results
        patch.setattr(report, "write_report", stopped)
        with pytest.raises(SystemExit):
            main(["resume=run"])
    assert Path("run/scores.json").read_bytes() == scores
    with pytest.raises(FinetuneError, match="is not a finished run: its results are being replaced"):
        finetune.load("run")
    with pytest.raises(FinetuneError, match="is not finished: its results are being replaced"):
        finetune.compare(["run", "run"])

    before = Path("run/scores.json").stat().st_mtime_ns
    main(["resume=run"])
    assert (
        Path("run/scores.json").stat().st_mtime_ns > before
    )  # written again, with the same scores if the best epoch stays
    assert RunFolder(Path("run")).is_complete()
    assert pd.read_csv("run/metrics.csv")["epoch"].tolist() == [0, 1, 2]
    finetune.load("run")
    resumes = json.loads(Path("run/environment.json").read_text())["resumed"]
    assert [resume["command"] for resume in resumes] == [
        "python -m finetune resume=run trainer.max_epochs=3", *["python -m finetune resume=run"] * 2,
    ]  # fmt: skip


def test_fewer_epochs_than_trained_are_an_error(place, capsys):
    Path("run/scores.json").unlink()
    assert "trainer.max_epochs=1: 2 epochs of run are trained already. Give 2 or more" in check_refused(
        capsys, "trainer.max_epochs=1"
    )
    with pytest.raises(SystemExit):  # quoted for Hydra's grammar, as the value of any other key
        main(["resume='run'", "trainer.max_epochs=1"])
    assert "2 epochs of run are trained already" in capsys.readouterr().err


def test_damaged_files_are_named(place, capsys):
    Path("run/scores.json").unlink()
    last = Path("run/checkpoints/last.ckpt")
    whole = last.read_bytes()
    last.unlink()
    for epoch in Path("run/checkpoints").glob("epoch_*.ckpt"):
        epoch.unlink()  # a whole one would be taken instead
    for content in (b"", whole[: len(whole) // 2], b"no checkpoint"):
        last.write_bytes(content)
        assert "last.ckpt cannot be read" in check_refused(capsys)
    last.write_bytes(whole)
    for name, content in (("environment.json", "{"), ("samples.csv", "a,b\n1,2\n"), ("config.yaml", "job: fit\n")):
        kept_as = Path("run", name).read_bytes()
        Path("run", name).write_text(content)
        assert f"run/{name}" in check_refused(capsys)
        Path("run", name).write_bytes(kept_as)


def test_a_checkpoint_cut_short_is_passed_over(place, capsys):
    """The run is resumed from the epoch before, and ends with the bits of the run that was left alone."""
    main([*FIT, "hydra.run.dir=kept", "callbacks.keep_all_checkpoints=true"])
    expected = Path("kept/predictions_val.csv").read_bytes()
    Path("kept/scores.json").unlink()
    for path in Path("kept/checkpoints").glob("*.ckpt"):
        if path.name != "epoch_000.ckpt":
            content = path.read_bytes()
            path.unlink()  # several names of one file
            path.write_bytes(content[: len(content) // 2])
    assert resume.trained_epochs(RunFolder(Path("kept"))) == 1
    main(["resume=kept"])
    assert "kept/checkpoints/last.ckpt is cut short: going on after epoch 0" in capsys.readouterr().out
    assert Path("kept/predictions_val.csv").read_bytes() == expected


def test_auto_skips_a_damaged_folder(tmp_path):
    for name, config in (("a", "job: fit\n"), ("b", "a: ["), ("c", "job: evaluate\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config)
    assert resume.newest_unfinished(tmp_path) == RunFolder(tmp_path / "a")
