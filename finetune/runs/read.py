"""A run folder read back: configuration, scores, metrics and predictions, if they exist."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation import wording
from finetune.evaluation.answers import PredictionsTable, answers_named, task_name
from finetune.files import relative_to_cwd
from finetune.runs import brief
from finetune.runs.folder import RunFolder, runs_in
from finetune.runs.older_keys import current_errors, current_scores

if TYPE_CHECKING:
    from finetune.model_file import Model


@dataclass(repr=False)
class Run:
    """The content of a run folder; empty values for missing or unreadable files.

    Printed, and as the value of a cell of a notebook, it is the run's first scores with their intervals.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    audit: dict[str, Any]
    metrics: pd.DataFrame
    scores: dict[str, Any]
    predictions: dict[str, Any]
    """Split -> the predictions table of the run's task; of a classification `finetune.Predictions`."""
    problems: list[str] = field(default_factory=list)
    """Which files are missing or cannot be read, in sentences."""
    openings: list[dict[str, Any]] = field(default_factory=list)
    """Openings of the test split: time and command."""
    near_copies: str | None = None
    """A PNG in base64: pairs of images that the audit found to be near copies."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """The most confident errors, with small images."""
    folder: Path | None = None
    """The run folder."""

    @property
    def model(self) -> Model:
        """The trained model, as `finetune.load` reads it.

        Raises:
            FinetuneError: the run is not finished.
        """
        from finetune.model_file import load

        return load(self._path)

    @property
    def report(self) -> Path:
        """The page with all results."""
        return RunFolder(self._path).report

    @property
    def _path(self) -> Path:
        if self.folder is None:
            raise FinetuneError("This run was not read from a folder: finetune.read_run(FOLDER) reads one.")
        return self.folder

    def __repr__(self) -> str:
        return brief.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return brief.as_html(*self._shown())

    def _shown(self) -> tuple[str, dict[str, Any], list[str]]:
        """Title, scores and notes."""
        names = [(self.config.get(group) or {}).get("name") for group in ("backbone", "data")]
        of_model = names[:1] if self.config.get("job") != "evaluate" else []
        what = " on ".join(str(name) for name in [*of_model, names[1]] if name) or "a run"
        notes = [f"Before use: {harm['short']}." for harm in self.scores.get("test", {}).get("harms", [])]
        place = None if self.folder is None else relative_to_cwd(self.folder)
        if place is None or not RunFolder(place).is_finished():
            return f"{what}: {place}", self.scores, [*notes, *self.problems[:5]]
        return f"{what}: {place}", self.scores, [*notes, f"Report: {RunFolder(place).report}"]

    @classmethod
    def read(cls, folder: Path, scores: dict[str, Any] | None = None) -> Run:
        """Read all files; `scores` replaces a scores.json that is not written yet."""
        problems: list[str] = []
        run = RunFolder(folder)

        def load(path: Path, parse, empty):
            if not path.is_file():
                problems.append(f"{path.name} is missing.")
                return empty
            try:
                content = parse(path) or empty
                if not isinstance(content, type(empty)) or not well_formed(content):
                    raise ValueError("it holds something else than was written")
                return content
            except (FinetuneError, ValueError, OSError) as error:
                problems.append(f"{path.name} cannot be read: {wording.shortened(str(error))}")
                return empty

        def well_formed(content: Any) -> bool:
            """Entries of a list are mappings, or the tables that were read."""
            tables = (dict, pd.DataFrame, PredictionsTable)
            return not isinstance(content, list) or all(isinstance(x, tables) for x in content)

        def parse_json(path: Path) -> Any:
            return json.loads(path.read_text(encoding="utf-8"))

        def parse_lines(path: Path) -> list[dict[str, Any]]:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

        config = load(run.config, lambda _: run.read_config(), {})
        environment = load(run.environment, lambda _: run.read_environment(), {})
        # An evaluation trained nothing, and of a table of probabilities it saw no image.
        is_evaluation = config.get("job") == "evaluate"
        audit = {} if is_evaluation and config.get("predictions") else load(run.audit, parse_json, {})
        none = [pd.DataFrame()]
        metrics = (
            none[0]
            if is_evaluation or config.get("job") == "soup"
            else load(run.metrics, lambda path: [pd.read_csv(path)], none)[0]
        )
        if scores is None:
            scores = load(run.scores, lambda path: current_scores(parse_json(path)), {})
        predictions: dict[str, Any] = {}
        for split in scores or ("val", "test"):
            of_split = scores.get(split, {})

            def read_table(path: Path, of_split: dict[str, Any] = of_split) -> list[Any]:
                return [answers_named(task_name(config)).read_table(path, of_split)]

            table = load(run.predictions(split), read_table, [None])[0]
            if table is not None:
                predictions[split] = table
        sheet = run.near_copies
        near_copies = base64.b64encode(sheet.read_bytes()).decode() if sheet.is_file() else None
        openings = load(run.test_openings, parse_lines, []) if run.test_openings.exists() else []
        errors = []
        if run.worst_errors.exists():
            errors = load(run.worst_errors, lambda path: current_errors(parse_json(path)), [])
        return cls(
            config, environment, audit, metrics, scores, predictions, problems, openings, near_copies, errors, folder
        )


def read_run(folder: str | Path) -> Run:
    """What a run folder holds: of a fit (outputs/latest), an evaluation, or a fit that is still going on.

    An unfinished run is read as far as it got; `problems` names each file that is missing.

    Raises:
        FinetuneError: `folder` is not a folder, or holds no run.

    Example:
        >>> run = finetune.read_run("outputs/latest")
        >>> run.config["backbone"]["name"]
        'resnet50'
        >>> run.scores["test"]["macro"]["auroc"]  # as in scores.json
        {'value': 0.91, 'low': 0.87, 'high': 0.94}
        >>> run.predictions["test"].frame.head()  # a row per image: sample, patient, target_, logit_, prob_, metadata
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FinetuneError(f"folder={folder} is not a folder. Name a run folder, such as outputs/latest.")
    if not RunFolder(folder).config.is_file():
        inside = sorted(run.path.name for run in runs_in(folder))
        ways = f"Name one of the runs in it: {', '.join(inside[:5])}." if inside else "Name a run folder."
        raise FinetuneError(f"folder={folder} is not a run: it has no config.yaml. {ways}")
    return Run.read(folder)
