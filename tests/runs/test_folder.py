"""What a run leaves besides its results: the log, the machine, and outputs/latest, which debug runs do not move."""

import ast
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

import finetune
from finetune.__main__ import main
from finetune.config import compose
from finetune.config.settings import parse
from finetune.runs import environment
from finetune.runs.folder import RunFolder
from finetune.steps.training import make_network
from tests.jobs.test_resume import FIT, draw


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    draw(folder)
    old = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(old)


def test_the_name_of_a_file_in_a_run_folder_is_written_once():
    run = RunFolder(Path("run"))
    files = [name for name, kind in vars(RunFolder).items() if isinstance(kind, property)]
    names = {getattr(run, name).name for name in files} - {"trials", "repeats"}  # words of a configuration too
    assert {"scores.json", "config.yaml", "environment.json", "model.safetensors", "samples.csv"} < names
    written = Counter(
        node.value
        for path in Path(finetune.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    )
    elsewhere = {"model.safetensors": 2, "checkpoints": 3, "config.yaml": 1, "config.json": 2, "scores.json": 1}
    hub = Counter(elsewhere)  # of hubs, of weights taken from a run, of pushed models
    assert written - hub == Counter(dict.fromkeys(names, 1))


@pytest.fixture(scope="module")
def debug(place):
    """A debug run beside an older fit that outputs/latest points to."""
    (place / "outputs" / "older").mkdir(parents=True)
    (place / "outputs" / "latest").symlink_to("older")
    words = [word for word in FIT if not word.startswith("trainer.max_epochs")]
    main([*words, "debug=fast", "hydra.run.dir=debug"])
    return place / "debug"


def test_a_debug_run_is_marked_and_latest_does_not_follow_it(debug, place):
    assert (place / "outputs" / "latest").resolve().name == "older"
    log, page = ((debug / name).read_text() for name in ("log.txt", "report.html"))
    assert log.count("DEBUG run: it tries the program on a few batches") == 2
    assert "outputs/latest stays as it was" in log
    assert "<title>DEBUG run: " in page
    assert page.count("DEBUG run: it tries") == 1
    assert yaml.safe_load((debug / "config.yaml").read_text())["debug_run"] is True


def test_the_log_holds_what_was_printed_and_epochs_count_from_0(debug):
    lines = (debug / "log.txt").read_text().splitlines()
    assert re.match(r"\[\d{4}-\d\d-\d\dT.*\] python -m finetune .*debug=fast", lines[0])
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 1
    assert epochs[0].startswith("epoch 0/0  train/loss ")
    assert len(epochs[0]) <= 80
    assert any(line.startswith("test: macro AUROC") for line in lines)
    assert not any("weights_only" in line or "litlogger" in line for line in lines)
    assert re.search(
        r"Best val/auroc [\d.]+ in epoch 0 .*Epochs are counted from 0", (debug / "report.html").read_text()
    )


def test_machine_threads_and_the_best_epoch_are_recorded_and_shown(debug):
    text, page = (debug / "environment.json").read_text(), (debug / "report.html").read_text()
    known = json.loads(text)
    assert known["processor"] == environment.processor() != ""
    assert known["processor"] in known["machine"]
    assert known["threads"] >= 1
    assert known["processes"] == 1
    assert known["best"]["epoch"] == 0
    assert known["best"]["monitor"] == "val/auroc"
    assert "threads per process" in page
    assert "The same seed gives the same weights to the last bit only with the same versions" in page


def test_every_job_keeps_a_log_and_a_resume_adds_to_it(debug, place):
    shutil.copytree(debug, place / "more", symlinks=True)
    main(["resume=more", "trainer.max_epochs=2"])
    text = (place / "more" / "log.txt").read_text()
    assert text.startswith((debug / "log.txt").read_text())
    added = text[len((debug / "log.txt").read_text()) :]
    assert re.match(r"\[.*\] python -m finetune resume=more", added)
    assert "epoch 1/1 " in added
    assert "weights_only" not in added
    assert "Tip:" not in added
    main(["job=evaluate", "model=debug", "data.num_workers=0", "hydra.run.dir=evaluation"])
    main(["job=compare", "runs=[debug,more]", "hydra.run.dir=comparison"])
    main(["job=predict", "model=debug", "input=0.png", "hydra.run.dir=prediction"])
    for name, messages in (
        ("evaluation", "test: macro"),
        ("comparison", "comparison: "),
        ("prediction", "1 image predicted"),
    ):
        text = (place / name / "log.txt").read_text()
        assert messages in text
        assert f"hydra.run.dir={name}" in text.splitlines()[0]


@pytest.mark.parametrize(("plan", "warned"), [("linear_probe", True), ("head_then_full", False), ("full", False)])
def test_a_backbone_that_stays_random_is_warned_of(plan, warned):
    words = ["backbone=resnet20_cifar", "backbone.weights=none", f"finetuning={plan}"]
    messages: list[str] = []
    make_network(parse(compose.plain(compose.compose(words))), 2, messages.append)
    warning = (
        "WARNING: no phase of finetuning trains stem, stage1, stage2, stage3: the head learns from RANDOM features."
    )
    assert any(sentence.startswith(warning) for sentence in messages) is warned


def test_a_folder_that_holds_a_run_already_gets_no_line(debug, capsys):
    before = (debug / "log.txt").read_text()
    with pytest.raises(SystemExit):
        main([*FIT, "hydra.run.dir=debug"])
    assert "holds a run already" in capsys.readouterr().err
    assert (debug / "log.txt").read_text() == before


def test_checkpoints_of_every_epoch_are_kept_only_on_demand(debug, place):
    names = {path.name for path in (place / "more" / "checkpoints").iterdir()}
    assert names - {"best.ckpt", "last.ckpt"} <= {"epoch_000.ckpt", "epoch_001.ckpt"}
    assert yaml.safe_load((debug / "config.yaml").read_text())["callbacks"]["keep_all_checkpoints"] is False
