"""The first scores of a run, as a list of runs and a notebook show them."""

from collections.abc import Mapping
from html import escape
from typing import Any

from finetune.evaluation import metrics


def brief_scores(scores: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Split -> title of a score -> value with its interval; of the contents of scores.json."""
    return {split: texts for split, of_split in scores.items() if (texts := _texts(of_split))}


def _texts(of_split: Mapping[str, Any]) -> dict[str, str]:
    texts = {}
    for group, name in metrics.BRIEF:
        score = (of_split.get(group) or {}).get(name)
        if score and score["value"] is not None:
            interval = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
            texts[metrics.metric(name).in_group(group)] = f"{score['value']:.3f}{interval}"
    return texts


def as_text(title: str, scores: Mapping[str, Any], notes: list[str]) -> str:
    """A title, a line per split and score, and notes."""
    lines = [
        f"  {split}: {name} {text}" for split, texts in brief_scores(scores).items() for name, text in texts.items()
    ]
    return "\n".join([title, *lines, *(f"  {note}" for note in notes)])


def as_html(title: str, scores: Mapping[str, Any], notes: list[str]) -> str:
    """The same as a small table for a notebook: a row per score, a column per split."""
    columns = brief_scores(scores)
    rows = list(dict.fromkeys(name for texts in columns.values() for name in texts))
    head = "".join(f"<th>{escape(split)}</th>" for split in columns)
    cells = {name: [escape(texts.get(name, "-")) for texts in columns.values()] for name in rows}
    body = "".join(f"<tr><td>{escape(n)}</td>{''.join(f'<td>{c}</td>' for c in cells[n])}</tr>" for n in rows)
    table = f"<table><tr><th>95 % interval over patients</th>{head}</tr>{body}</table>" if rows else ""
    return f"<p>{escape(title)}</p>{table}" + "".join(f"<p>{escape(note)}</p>" for note in notes)
