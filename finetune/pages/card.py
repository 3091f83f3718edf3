"""README.md of a model on the Hugging Face hub: the model card, made from the files of its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from finetune.evaluation import metrics, wording
from finetune.pages.report import RENDERERS, task_of
from finetune.runs.read import Run

PIPELINES = {"classify": "image-classification", "segment": "image-segmentation", "detect": "object-detection"}
"""Task -> the hub's name of it."""
PER_CLASS = {
    "classify": ("auroc", "sensitivity", "specificity"),
    "segment": ("dice", "iou"),
    "detect": ("ap50", "froc"),
}
"""Task -> scores of each class in the card; scores.json has all."""
HUB_METRICS = {"auroc": "roc_auc"}
"""Our name of a score -> the hub's, where that is another."""
SPECIAL = re.compile(r"([\\`*_\[\]|#<>])")


class Code(str):
    """Text within code, where Markdown takes every character as it is; it was checked to have no backtick."""


@dataclass(frozen=True)
class Facts:
    """What the files of a run do not say."""

    to: str
    """ORG/NAME on the hub."""
    licence: str | None
    """The hub's identifier of a licence; None where none was stated."""
    dataset: str | None
    """Name of the data; an ORG/NAME is a data set of the hub."""
    has_config: bool
    """Whether timm can build the network from a config.json."""


def write_card(folder: Path, facts: Facts) -> str:
    """The model card of the run in `folder`: front matter and text, with scores as in scores.json."""
    run = Run.read(folder)
    task = task_of(run)
    # the report's own sentences: verdict, comparisons, failures, checks, splits
    shown = RENDERERS[task][1](run, folder)
    data = run.config.get("data") or {}
    shown |= {
        "facts": facts,
        "title": facts.to.partition("/")[2],
        "sentence": wording.what_was_run(
            str((run.config.get("backbone") or {}).get("name")),
            facts.dataset or f"data={data.get('name')}",
            shown["splits"],
            shown["has_patients"],
        ),
        "source": data.get("name"),
        "repo": Code(facts.to),
        "weights": run.environment.get("weights") or {},
        "debug": bool(run.config.get("debug_run")),
        "per_class": per_class(shown["scores"], task),
        "cautions": [wording.shortened(text) for text in (*shown["scores"].get("warnings", []), *notes(run))],
        "level": round(100 * (shown["scores"].get("intervals") or {}).get("level", 0.95)),
    }
    matter = yaml.safe_dump(front_matter(run, task, shown), sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n\n{_environment().get_template('card.md.j2').render(shown)}\n"


def front_matter(run: Run, task: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads of a card. Scores of synthetic images and of DEBUG runs are left out: it lists them."""
    facts, backbone = shown["facts"], (run.config.get("backbone") or {}).get("name")
    stated = {"license": facts.licence} if facts.licence else {"license": "other", "license_name": "not-stated"}
    base = str(shown["weights"].get("tag") or "").partition("hf-hub:")[2].partition("@")[0]
    on_hub = facts.dataset if "/" in (facts.dataset or "") else None
    no_result = shown["synthetic"] or shown["debug"]
    scores = headline_scores(shown["scores"])
    result = {
        "task": {"type": PIPELINES.get(task, "other")},
        "dataset": {
            "type": on_hub or str(shown["source"]),
            "name": facts.dataset or str(shown["source"]),
            "split": shown["split"],
        },
        "metrics": [{"type": kind, "name": title, "value": score["value"]} for kind, title, score in scores],
    }
    return {
        **stated,
        "library_name": "timm" if facts.has_config else "finetune",
        **({"pipeline_tag": PIPELINES[task]} if task in PIPELINES else {}),
        "tags": [
            "finetune",
            *([backbone] if backbone else []),
            task,
            *(["synthetic-data"] if shown["synthetic"] else []),
        ],
        **({"base_model": base} if base else {}),
        **({"datasets": [on_hub]} if on_hub else {}),
        **({"metrics": list(dict.fromkeys(kind for kind, *_ in scores))} if scores else {}),
        **({} if no_result or not scores else {"model-index": [{"name": shown["title"], "results": [result]}]}),
    }


def headline_scores(scores: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(the hub's name, title, score) of the head scores that are defined."""
    headlines = []
    for group, name in metrics.HEADLINES:
        score = (scores.get(group) or {}).get(name)
        if score and score.get("value") is not None:
            headlines.append((HUB_METRICS.get(name, name), metrics.metric(name).in_group(group), score))
    return headlines


def per_class(scores: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The table of scores per class as text: headings and rows."""
    classes = scores.get("classes") or {}
    names = [
        name for name in PER_CLASS.get(task, ()) if any(isinstance(c.get(name), Mapping) for c in classes.values())
    ]
    rows = [[c, *(wording.interval(of_class.get(name)) for name in names)] for c, of_class in classes.items()]
    return {"heads": [metrics.metric(name, task).heading for name in names], "rows": rows}


def notes(run: Run) -> list[str]:
    return [note for of_split in run.scores.values() for note in of_split.get("notes", [])]


def _environment() -> Environment:
    """Templates of Markdown: what they show is text, never markup, as names of classes come from users' tables."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        finalize=lambda value: value if isinstance(value, Code) else SPECIAL.sub(r"\\\1", " ".join(str(value).split())),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
