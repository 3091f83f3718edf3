"""A study without any training: what is drawn, how many trials there are, and what becomes of dead processes."""

import os
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from finetune.errors import FinetuneError
from finetune.tuning import results, study
from finetune.tuning.sampler import NumberedTPE
from finetune.tuning.space import draw, read

SPACE = read(
    {
        "optimizer.lr": {"log": [1e-5, 1e-1]},
        "loss": {"choice": ["bce", "focal"]},
        "noise": {"uniform": [0, 1]},
    }
)
FACTS = {"higher_is_better": True, "search": {"optimizer.lr": "x"}}


def score(values) -> float:
    """Best at 1e-3 with bce."""
    import math

    return -((math.log10(values["optimizer.lr"]) + 3) ** 2) - (values["loss"] == "focal")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def storage():
    """In memory, which is ten times as fast as a file."""
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def database(url):
    with study.open_storage(url) as opened:
        yield opened


def opened(storage, name="s", seed=0, pruner="none", facts=FACTS):
    return study.open_study(name, storage, facts, NumberedTPE(seed, 5), study.make_pruner(pruner, 1, 10))


def run(storage, total, **options) -> list[dict]:
    searched = opened(storage, **options)
    study.run_trials(searched, total, lambda trial: score(draw(SPACE, trial)))
    return [trial.params for trial in searched.trials]


def test_draws_depend_on_seed_and_number_alone(storage):
    """Also through an end in between, and beyond the random trials; another seed draws others."""
    whole = run(storage, 12, name="whole")
    run(storage, 4, name="resumed")
    assert run(storage, 12, name="resumed") == whole
    assert run(storage, 3, name="other", seed=1) != whole[:3]
    assert len({params["noise"] for params in whole}) == 12


def test_the_sampler_finds_the_better_half(storage):
    run(storage, 30)
    searched = opened(storage)
    late = [trial.params for trial in searched.trials[15:]]
    assert sum(params["loss"] == "bce" for params in late) > 10
    best = results.completed(searched, True)[0]
    assert 2e-4 < best.params["optimizer.lr"] < 5e-3
    shares = results.importances(searched)
    assert next(iter(shares)) == "optimizer.lr"
    assert sum(shares.values()) == pytest.approx(1)


def test_the_typed_configuration_comes_first(storage):
    searched = opened(storage)
    searched.enqueue_trial({"optimizer.lr": 3e-4, "loss": "focal", "noise": 0.5})
    study.run_trials(searched, 2, lambda trial: score(draw(SPACE, trial)))
    assert searched.trials[0].params == {"optimizer.lr": 3e-4, "loss": "focal", "noise": 0.5}


def test_failures_count_and_are_recorded_and_the_search_goes_on(storage, capsys):
    def sometimes(trial):
        values = draw(SPACE, trial)
        if trial.number == 1:
            raise FinetuneError("lower it")
        if trial.number == 2:
            raise KeyError("a bug")
        return score(values)

    searched = opened(storage)
    study.run_trials(searched, 4, sometimes)
    described = results.describe_trials(searched, SPACE)
    assert [trial["state"] for trial in described] == ["complete", "failed", "failed", "complete"]
    assert [trial["reason"] for trial in described] == [None, "lower it", "KeyError: 'a bug'", None]
    assert "Traceback" in capsys.readouterr().err

    def always(trial):
        raise FinetuneError("never")

    with pytest.raises(FinetuneError, match=r"all of the first 5 trials have failed\. The last: never"):
        study.run_trials(opened(storage, name="bad"), 20, always)


def test_a_stop_by_hand_is_no_result(storage):
    def stopped(trial):
        raise SystemExit(143)

    searched = opened(storage)
    with pytest.raises(KeyboardInterrupt):
        study.run_trials(searched, 2, stopped)
    assert study.num_counted(searched) == 0
    run(storage, 2)
    assert [t["state"] for t in results.describe_trials(opened(storage), SPACE)] == ["killed", "complete", "complete"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with Study.optimize")
def test_a_running_trial_of_a_dead_process_is_failed_and_one_of_a_living_is_not(database):
    searched = opened(database)
    host, number, began = study.this_process()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    processes = {"dead": [host, gone.pid, "1"], "alive": [host, number, began], "far": ["elsewhere", gone.pid, "1"]}
    if began is not None:
        processes["reused id"] = [host, number, "1"]
    for process in processes.values():
        searched.ask().set_user_attr(study.PROCESS, process)
    again = opened(database)
    states = {name: trial.state for name, trial in zip(processes, again.trials, strict=True)}
    assert states.pop("dead") == states.pop("reused id", TrialState.FAIL) == TrialState.FAIL
    assert set(states.values()) == {TrialState.RUNNING}
    assert study.num_counted(again) == 2
    again.ask().set_user_attr(study.PROCESS, processes["dead"])  # one that dies while the search goes on is made up for
    study.run_trials(again, 4, lambda trial: score(draw(SPACE, trial)))
    assert [trial.state for trial in again.trials[-3:]] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_one_trial_too_many_is_not_trained(storage):
    """Two processes that both saw room for the last trial."""
    searched = opened(storage)
    for _ in range(2):
        searched.ask().set_user_attr(study.PROCESS, study.this_process())
    trained = []
    original, calls = study.num_counted, iter([1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "num_counted", lambda s, below=None: next(calls, None) or original(s, below))
        study.run_trials(searched, 2, lambda trial: trained.append(trial.number) or 0.0)
    assert trained == []
    assert study.SURPLUS in searched.trials[2].user_attrs
    assert [trial["number"] for trial in results.describe_trials(searched, SPACE)] == [0, 1]


def test_a_study_with_other_facts_is_refused(storage):
    opened(storage)
    with pytest.raises(FinetuneError, match=r"study=s was begun with another search: optimizer.lr was x, is y"):
        opened(storage, facts={**FACTS, "search": {"optimizer.lr": "y"}})


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all/x.db", "nonsense://x", "postgresql://user:secret@nowhere/x"]
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(url, monkeypatch):
    monkeypatch.setattr(study, "ATTEMPTS", 1)
    with pytest.raises(FinetuneError, match=r"storage=.* cannot be opened") as refused, study.open_storage(url):
        pass
    assert "secret" not in str(refused.value)


def test_pruners(storage):
    """Five good trials, then a bad one: the median stops it after the warm-up."""
    searched = opened(storage, pruner="median")

    def objective(trial):
        bad = trial.number == 5
        for epoch in range(4):
            trial.report(0.1 if bad else 0.9, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.9

    study.run_trials(searched, 6, objective)
    assert [t.state for t in searched.trials] == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    assert list(searched.trials[5].intermediate_values) == [0, 1]
    assert isinstance(study.make_pruner("hyperband", 0, 10), optuna.pruners.HyperbandPruner)


def test_two_processes_share_a_study(url):
    """Opened at the same moment, without the tables; together they run exactly the trials asked for, none twice."""
    code = (
        "import sys, time; from tests.tuning.test_study import *\n"
        f"with study.open_storage({url!r}) as storage:\n"
        "    searched = opened(storage)\n"
        "    study.run_trials(searched, 12, lambda trial: (time.sleep(0.1), score(draw(SPACE, trial)))[1])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    with study.open_storage(url) as storage:
        trials = [trial for trial in opened(storage).trials if study.counts(trial)]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    assert len({trial.user_attrs[study.PROCESS][1] for trial in trials}) == 2
    assert len({trial.params["noise"] for trial in trials}) == 12


def test_repeats_are_queued_once_and_the_choice_is_by_their_mean(storage):
    repeats = optuna.create_study(storage=storage, study_name="r", sampler=optuna.samplers.RandomSampler())
    results.queue_repeats(repeats, [3, 5], [1, 2])
    results.queue_repeats(repeats, [3, 7], [1, 2])
    waiting = [(t.user_attrs["of"], t.user_attrs["seed"]) for t in repeats.trials]
    assert waiting == [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)]

    def objective(trial):
        return trial.user_attrs["of"] / 10 + trial.user_attrs["seed"] / 100

    while results.has_waiting(repeats):
        study.optimize(repeats, objective)
    assert {seed: t.value for seed, t in results.repeated(repeats, 5, [1, 2]).items()} == {
        1: pytest.approx(0.51),
        2: pytest.approx(0.52),
    }
    candidates = [
        {"number": 3, "score": 0.99, "mean": 0.6, "seeds": [{"score": 0.5}, {"score": 0.7}]},
        {"number": 5, "score": 0.90, "mean": 0.8, "seeds": [{"score": 0.7}, {"score": 0.9}]},
        {"number": 7, "score": 0.80, "mean": None, "seeds": []},
    ]
    assert results.choose(candidates, True)["number"] == 5
    assert results.choose(candidates, False)["number"] == 3
    assert results.choose(candidates[2:], True)["number"] == 7
    noise = results.spread(candidates)
    assert noise["sd"] == pytest.approx(0.02**0.5)  # each has the variance 0.02, with one degree of freedom
    assert noise["df"] == 2
    assert noise["single"] == pytest.approx(4.3027 * 0.2, rel=1e-4)  # t of 2 degrees, times sd, times the root of 2
    assert results.spread(candidates[2:]) is None
