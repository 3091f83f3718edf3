"""What is written of a search: the choice among the best trials, tuning.json, tuning.html and the experiment file."""

from __future__ import annotations

from typing import Any

from finetune.config.sweep import relative_to_cwd
from finetune.errors import FinetuneError
from finetune.evaluation import metrics
from finetune.evaluation.answers import Candidate, answers_named, comparable, task_name
from finetune.files import write_json_atomic
from finetune.pages import comparison as verdicts
from finetune.pages import search as page
from finetune.runs.environment import command
from finetune.runs.folder import RunFolder
from finetune.steps.search import Search
from finetune.tuning import results, space

MAX_RESAMPLES = 1000


def candidates_of(search: Search) -> list[dict[str, Any]]:
    """The best trials with their repeats, in plain values."""
    described = []
    for original in search.top():
        repeated = results.repeated(search.repeats, original.number, search.seeds)
        seeds = [{"seed": seed, "score": t.value, "folder": t.user_attrs["folder"]} for seed, t in repeated.items()]
        scores = [seed["score"] for seed in seeds]
        described.append(
            {
                "number": original.number,
                "values": space.values_of(search.space, original.params),
                "score": original.value,
                "folder": original.user_attrs["folder"],
                "seeds": seeds,
                "mean": sum(scores) / len(scores) if scores else None,
            }
        )
    return described


def compare(search: Search, candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The candidates compared on val with intervals over patients, as job=compare does; None where their
    predictions are on another machine, or the task has no comparison."""
    task = task_name(search.settings.resolved)
    answers = answers_named(task)
    members = []
    for candidate in candidates:
        seeds = candidate["seeds"] or [{"seed": search.settings.seed, "folder": candidate["folder"]}]
        paths = [RunFolder(search.run.path / seed["folder"]).predictions("val") for seed in seeds]
        if not all(path.is_file() for path in paths):
            return None
        tables = [answers.read_table(path, {}) for path in paths]
        members.append(Candidate(f"trial {candidate['number']}", tables, [seed["seed"] for seed in seeds]))
    n_boot = min(search.settings.evaluation.get("resamples", MAX_RESAMPLES), MAX_RESAMPLES)
    try:
        return comparable(task).compare(members, n_boot, search.settings.seed)
    except FinetuneError as error:
        search.say(f"no intervals: {error}")
        return None


def write(search: Search) -> None:
    """Choose, and write tuning.json, tuning.html and the experiment file of the best configuration."""
    candidates = candidates_of(search)
    compared = compare(search, candidates)
    score_name = verdicts.head_of(compared) if compared else None
    for i, candidate in enumerate(candidates):
        candidate["interval"] = compared["candidates"][i]["scores"][score_name] if compared else None
    best = results.choose(candidates, search.higher_is_better)
    trials = results.describe_trials(search.study, search.space)
    summary: dict[str, Any] = {
        "study": search.name,
        "command": command(search.words),
        "monitor": search.comparison.monitor,
        "higher_is_better": search.higher_is_better,
        "space": {key: entry.describe() for key, entry in search.space.items()},
        "logarithmic": [key for key, entry in search.space.items() if entry.is_log],
        "choices": {key: [space.label(v) for v in e.values] for key, e in search.space.items() if e.kind == "choice"},
        "pruner": search.settings.pruner,
        "trials": trials,
        "start": next((t.number for t in search.study.get_trials(deepcopy=False) if "start" in t.user_attrs), None),
        "importance": results.importances(search.study),
        "top": candidates,
        "interval_of": metrics.metric(score_name).title if score_name else None,
        "noise": results.spread(candidates),
        "verdicts": verdicts.verdicts(compared)[: len(compared["pairs"])] if compared else [],
        "best": best["number"],
        "synthetic": search.settings.demo,
    }
    path = search.run.best_experiment
    summary["use"] = f"python -m finetune --config-dir {relative_to_cwd(path.parent.parent)} experiment={path.stem}"
    lines = page.sentences(summary)
    header = [f"The best configuration of a search: {summary['command']}", *lines, f"  {summary['use']}"]
    search.configs.write_experiment(path, best["values"], header)
    write_json_atomic(search.run.tuning, summary)
    page.write(search.run.tuning_page, summary)
    for line in [*page.table(summary), *lines, summary["use"], f"search: {relative_to_cwd(search.run.tuning_page)}"]:
        search.say(line)
