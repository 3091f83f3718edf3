"""What a preview of a fit left, for reading in a notebook."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from finetune.files import relative_to_cwd
from finetune.runs.folder import RunFolder


@dataclass(frozen=True, repr=False)
class Preview:
    """The figures of a preview, and the first batch as an image."""

    folder: Path
    phases: list[dict[str, Any]]
    """Per phase of the plan: its first epoch, and the trainable parameters of each part."""
    cost: dict[str, Any]
    """Time and memory, as in preview.json."""
    audit: dict[str, Any]
    """As in audit.json."""

    @classmethod
    def read(cls, folder: Path) -> "Preview":
        """From the folder of job=preview."""
        run = RunFolder(folder)
        figures = json.loads(run.preview.read_text(encoding="utf-8"))
        return cls(folder, figures["learns"], figures["cost"], json.loads(run.audit.read_text(encoding="utf-8")))

    @property
    def batch(self) -> Path:
        """The first training batch as the network sees it, a PNG."""
        return RunFolder(self.folder).first_batch

    def _lines(self) -> list[str]:
        phases = [f"from epoch {p['epoch']}: {p['name']} trains {p['trained']:,} of {p['all']:,}" for p in self.phases]
        return [*phases, *(f"audit: {warning}" for warning in self.audit.get("warnings", []))]

    def __repr__(self) -> str:
        return "\n  ".join([f"Preview: {relative_to_cwd(self.folder)}", *self._lines()])

    def _repr_html_(self) -> str:
        import base64

        image = base64.b64encode(self.batch.read_bytes()).decode() if self.batch.is_file() else ""
        shown = f'<img src="data:image/png;base64,{image}" alt="first batch">' if image else ""
        return "".join(f"<p>{escape(line)}</p>" for line in self._lines()) + shown
