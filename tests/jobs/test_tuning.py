"""job=tune: trials, repeats, the best configuration as a file; the test split stays closed."""

import json
from pathlib import Path

import pytest
import yaml

from finetune.__main__ import main
from finetune.config import compose
from finetune.config.overrides import CONFIG_DIRS
from finetune.config.trials import TrialConfigs, as_experiment
from finetune.errors import FinetuneError
from finetune.runs.folder import RunFolder
from finetune.runs.group import flat
from finetune.steps import trial as trials
from finetune.tuning import space, study
from tests.jobs.test_fit import TINY, draw

WORDS = [*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images", "data.val_fraction=0.3"]
SEARCH = [
    "search.optimizer.lr={log: [1e-4, 1e-2]}",
    "search.optimizer.weight_decay=null",
    "search.finetuning.lr_decay=null",
    "search.loss={choice: [cross_entropy, auto]}",
    "top=1",
    "repeats=2",
    "evaluation.resamples=50",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images", 12)
    return tmp_path


def configs(*words: str) -> TrialConfigs:
    typed = ["job=tune", *WORDS, *words]
    return TrialConfigs(typed, space.read(compose.plain(compose.compose(typed))["search"]))


def test_a_search_from_its_trials_to_the_best_configuration(place, capsys, monkeypatch):
    predicted = []
    original = trials.Subject

    def subject(network, data, rows, split, *more):
        predicted.append(split)
        return original(network, data, rows, split, *more)

    monkeypatch.setattr(trials, "Subject", subject)
    command = ["job=tune", "study=small", *WORDS, *SEARCH]
    main([*command, "trials=2"])
    run = RunFolder(Path("outputs/tune/small"))
    summary = json.loads(run.tuning.read_text())
    output = capsys.readouterr().out
    assert [trial["state"] for trial in summary["trials"]] == ["complete"] * 2
    assert summary["start"] == 0
    assert summary["trials"][0]["values"] == {"optimizer.lr": 3e-4, "schedule": "cosine", "loss": "auto"}
    assert output.count("audit: val has fewer") == 1
    assert set(predicted) == {"val"}
    assert not list(place.rglob("predictions_test.csv"))
    assert not list(place.rglob("*.ckpt"))
    assert not Path("outputs/latest").exists()
    for trial in summary["trials"]:
        folder = RunFolder(run.path / trial["folder"])
        assert {path.name for path in folder.path.iterdir()} >= {"config.yaml", "metrics.csv", "log.txt"}
        config = folder.read_config()
        assert config["optimizer"]["lr"] == trial["values"]["optimizer.lr"]
        assert "the same data as in small" in folder.log.read_text()
        scores = [float(row.split(",")[6]) for row in folder.metrics.read_text().splitlines()[1:]]
        assert max(scores) == pytest.approx(trial["score"], abs=1e-5)
    seeds = [seed for candidate in summary["top"] for seed in candidate["seeds"]]
    assert [seed["seed"] for seed in seeds] == [1, 2]
    assert RunFolder(run.path / seeds[1]["folder"]).read_config()["seed"] == 2
    best = next(candidate for candidate in summary["top"] if candidate["number"] == summary["best"])
    assert best["mean"] == max(candidate["mean"] for candidate in summary["top"])
    assert best["interval"]["value"] == pytest.approx(best["mean"], abs=1e-6)
    for sentence in ("Noise floor: standard deviation over seeds", "The best score of a search is optimistic"):
        assert sentence in output
        assert sentence in run.tuning_page.read_text()

    text = run.best_experiment.read_text()
    assert "# The best configuration of a search: python -m finetune job=tune study=small" in text
    assert "# 2 trials: 2 complete." in text
    monkeypatch.setenv(CONFIG_DIRS, str((run.path / "conf").resolve()))
    experiment = compose.plain(compose.compose(["experiment=best"]))
    trained = RunFolder(run.path / best["folder"]).read_config()
    job_keys = set(trained) - set(experiment)
    assert flat(experiment) == {
        key: value for key, value in flat(trained).items() if key.split(".")[0] not in job_keys
    } | {"job": "fit", "find": "[]"}
    monkeypatch.delenv(CONFIG_DIRS)

    main([*command, "trials=3", "trainer.devices=1"])
    output = capsys.readouterr().out
    assert "3 trials, 2 of them begun before" in output
    assert output.count("\ntrial 2: ") == 1
    assert "trial 0: " not in output.split("the best on val")[0]
    assert len(json.loads(run.tuning.read_text())["trials"]) == 3
    with pytest.raises(SystemExit):
        main([*command, "trials=3", "data.seed=1"])
    assert "study=small was begun with another val images" in capsys.readouterr().err


def test_a_failed_trial_is_recorded_and_one_stopped_early_has_no_score(place, capsys, monkeypatch):
    pruned = iter([True, False, False])  # of the second trial after its first epoch
    monkeypatch.setattr(study.optuna.trial.Trial, "should_prune", lambda self: next(pruned))
    command = ["job=tune", "study=mixed", *WORDS, "trainer.max_epochs=2", "trials=3", "repeats=0", "top=1"]
    words = ["search.optimizer.lr={choice: [3e-4, 1e30]}", "search.schedule=null", "optimizer=sgd"]
    original = space.draw
    monkeypatch.setattr(space, "draw", lambda *a: {**original(*a), "optimizer.lr": 1e30 if a[1].number == 0 else 3e-4})
    main([*command, *words, "search.optimizer.weight_decay={log: [1e-4, 1e-2]}"])
    summary = json.loads(Path("outputs/tune/mixed/tuning.json").read_text())
    states = [trial["state"] for trial in summary["trials"]]
    assert sorted(states) == ["complete", "failed", "pruned"]
    failed = summary["trials"][states.index("failed")]
    assert "Lower optimizer.lr" in failed["reason"]
    stopped = summary["trials"][states.index("pruned")]
    assert (stopped["score"], stopped["epochs"]) == (None, 1)
    assert "stopped early" in capsys.readouterr().out
    (best,) = summary["top"]
    assert (best["mean"], best["seeds"]) == (None, [])
    assert best["interval"]["value"] == pytest.approx(best["score"], abs=1e-6)


ALONE = [f"search.{key}=null" for key in ("optimizer.lr", "optimizer.weight_decay", "finetuning.lr_decay", "schedule")]


def fails(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        main(["job=tune", *WORDS, *words])
    assert not Path("outputs").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.optimizer.lrr={log: [1, 2]}"], "search.optimizer.lrr={log: ...}: the key optimizer.lrr=lrr is not"),
        (["search.loss={choice: [cross_entropy, focl]}"], "search.loss=focl is not known. Did you mean focal?"),
        (["search.loss={log: [1, 2]}"], "loss is a group, its entry must be a choice"),
        ([*ALONE, "search.head.dropout={uniform: [0, 2]}"], "search.head.dropout with 2: "),
        ([*ALONE, "search.data.batch_size={choice: [4, x]}"], "search.data.batch_size with x: data.batch_size=x"),
        (["search=default", "search.seed={int: [0, 9]}"], "seed cannot be searched"),
        (["search=typo"], "search=typo is not known. Choose from default, wide"),
        (["trials=0"], "trials=0 must be 1 or more"),
        (["study=a/b"], "study=a/b names a folder"),
        (["storage=x.db"], "storage=x.db is not the URL of a database"),
        (["pruner=best"], "pruner=best is not known. Choose from median, hyperband, none"),
        (["~callbacks"], "callbacks cannot be left out"),
    ],
)
def test_what_is_wrong_is_named_before_the_first_trial(place, capsys, words, message):
    assert message in fails(capsys, *words)


def test_without_optuna_the_extra_is_named(place, capsys, monkeypatch):
    monkeypatch.setattr("finetune.config.settings.find_spec", lambda name: None)
    assert 'job=tune needs the package optuna: pip install -e ".[tune]"' in fails(capsys)


def test_losses_are_not_compared_by_the_loss():
    comparison = trials.Comparison("x", "val/loss", False)
    settings = type("S", (), {"space": space.read({"loss": {"choice": ["bce", "focal"]}}), "study": "s", "seed": 0})
    settings.repeats = 0
    from finetune.steps.search import Search

    with pytest.raises(FinetuneError, match=r"search\.loss: val/loss compares the trials"):
        Search(settings, RunFolder(Path("x")), [], None, comparison, None)


def test_words_of_a_trial_and_the_experiment_file():
    made = configs("optimizer=sgd", "optimizer.lr=0.1", "seed=3", "trials=9")
    values = {"optimizer.lr": 2e-4, "schedule": "step", "callbacks.extra": {}}
    words = made.words_of(values)
    assert "optimizer.lr=0.1" not in words
    assert words[-3:-1] == ["optimizer.lr=0.0002", "schedule=step"]
    assert not any(word.startswith(("job=", "trials=", "search")) for word in words)
    content = as_experiment([*words, "experiment=demo"])
    assert content["defaults"] == [
        "demo",
        "_self_",
        {"override /backbone": "resnet20_cifar"},
        {"override /data": "folder"},
        {"override /optimizer": "sgd"},
        {"override /schedule": "step"},
    ]
    assert content["optimizer"] == {"lr": 2e-4}
    assert content["seed"] == 3


@pytest.mark.parametrize("choice", ["default", "wide"])
def test_every_space_can_be_trained(choice):
    """Findings of chest X-rays; every value is composed and built."""
    typed = ["job=tune", f"search={choice}", "data=chestxray", "data.root=x", "backbone.weights=none"]
    entries = space.read(compose.plain(compose.compose(typed))["search"])
    start = TrialConfigs(typed, entries).check()
    assert set(start) <= set(entries)


def test_two_devices_train_each_trial_together(place):
    """Rank 0 alone draws; the other rank gets the configuration of each trial."""
    logger = ["logger=tensorboard", "trainer.log_every_n_steps=1"]
    main(["job=tune", "study=two", *WORDS, "trainer.devices=2", "trials=1", "repeats=0", *logger])
    summary = json.loads(Path("outputs/tune/two/tuning.json").read_text())
    (trial,) = summary["trials"]
    run = Path("outputs/tune/two") / trial["folder"]
    assert trial["state"] == "complete"
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert len(list(run.rglob("events.out.tfevents*"))) == 1
    assert yaml.safe_load((run / "config.yaml").read_text())["job"] == "tune"


def test_a_folder_of_another_job_is_refused(place, capsys):
    Path("taken").mkdir()
    Path("taken/config.yaml").write_text("job: fit\n")
    with pytest.raises(SystemExit):
        main(["job=tune", *WORDS, "trials=1", "hydra.run.dir=taken"])
    assert "taken holds a run of job=fit. Choose another study=NAME" in capsys.readouterr().err


def test_a_password_is_written_nowhere(place, capsys, monkeypatch):
    def refuse(url):
        raise FinetuneError(f"{study.hidden(url)} is not there")

    monkeypatch.setattr(study, "open_storage", refuse)
    with pytest.raises(SystemExit):
        main(["job=tune", "study=s", *WORDS, "storage=postgresql://me:secret@host/db"])
    texts = [path.read_text() for path in Path("outputs/tune/s").rglob("*") if path.is_file()]
    assert any("postgresql://me:***@host/db" in text for text in texts)
    assert not any("secret" in text for text in [*texts, *capsys.readouterr()])
