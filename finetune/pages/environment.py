"""The one place that makes pages: templates with the shared style, macros, filters and the catalogue of scores.

A page extends `base.html.j2`; a report of a run extends `report.html.j2`, which does. What a page shows is text, never
markup, unless it is a `Markup`: names of classes and paths come from users' tables.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from finetune.evaluation import metrics, wording

FOLDER = Path(__file__).parent


@cache
def environment() -> Environment:
    """Templates of this folder; a file of a run may lack any key, so what is undefined is shown as nothing."""
    pages = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "number": wording.number,
        "interval": wording.interval,
        "difference": wording.difference,
        "shortened": wording.shortened,
        "counted": wording.counted,
        "mean_count": wording.mean_count,
    }
    pages.globals |= {"metric": metrics.metric}
    return pages


def render(template: str, **variables: Any) -> str:
    """A page as HTML, in one text that loads nothing."""
    return environment().get_template(template).render(variables)
