"""The section "GPU" of RESULTS.md while it is measured: written anew after each row, so that a stop loses nothing."""

from dataclasses import dataclass, field

import torch

from benchmarks.results import machine, write_section

TITLE = "GPU"
HEADINGS = {
    "training": (
        "Training step (forward, backward, AdamW): bf16-mixed, channels last. Peak: what a step adds to the memory.",
        ("network", "training", "batch", "images/s", "time over timm", "peak, MiB", "peak over timm"),
    ),
    "compiled": (
        "The same with torch.compile, beside timm eager.",
        ("network", "training", "batch", "images/s", "time over timm", "time over timm compiled"),
    ),
    "fit": (
        "A fit: decoded images in the cache to weights, with workers and augmentation, against the bare training step "
        "on one batch that stays on the device. Waits: share of the time in which the main process waits for a batch.",
        ("network", "batch", "workers", "fit, images/s", "bare step, images/s", "fit over bare step", "waits"),
    ),
    "inference": (
        "Inference, channels last, torch's defaults (TF32 in convolutions of float32); the difference of the logits is "
        "relative, to timm's in float32.",
        ("network", "precision", "way", "batch", "images/s", "times as fast as timm", "difference"),
    ),
    "largest": (
        "Largest batch whose training step fits, to an eighth; 2048 are the most that are tried.",
        ("network", "training", "images", "over timm"),
    ),
}
GOALS = (
    ("densenet121 lean, peak over timm", "densenet121 lean peak", "at most", 0.30),
    ("densenet121 lean, time over timm", "densenet121 lean time", "at most", 1.00),
    ("resnet50 compiled, time over timm compiled", "resnet50 compiled time", "at most", 1.00),
    ("resnet50 fit, images/s over the bare step", "resnet50 fit share", "at least", 0.95),
)
"""What is aimed at, the figure that shows it, and its bound."""


@dataclass
class Report:
    """Rows by part, and the figures that the goals are about."""

    command: str
    device: torch.device
    write: bool
    rows: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    def add(self, part: str, *cells: object, figures: dict[str, float | None] | None = None) -> None:
        """A row of the part's table, printed and written."""
        line = table_row(*("" if cell is None else cell for cell in cells))
        self.rows.setdefault(part, []).append(line)
        self.figures |= {name: value for name, value in (figures or {}).items() if value is not None}
        self.show(line)

    def note(self, sentence: str) -> None:
        """What could not be measured, and why."""
        self.notes.append(sentence)
        self.show(sentence)

    def end(self) -> None:
        self.complete = True
        self.show("\n".join(self.goals()))

    def show(self, text: str) -> None:
        print(text, flush=True)
        if self.write:
            write_section(TITLE, self.text())

    def goals(self) -> list[str]:
        lines = [table_row("goal", "bound", "measured", "met"), table_row(*["---"] * 4)]
        for words, name, kind, bound in GOALS:
            value = self.figures.get(name)
            met = value is not None and (value <= bound if kind == "at most" else value >= bound)
            measured = ("not measured", "") if value is None else (f"{value:.2f}", "yes" if met else "no")
            lines.append(table_row(words, f"{kind} {bound:.2f}", *measured))
        return lines

    def text(self) -> str:
        """The section."""
        lines = [f"`{self.command}`", ""]
        if not self.complete:
            lines += ["Not complete: it is being measured, or was cut off.", ""]
        lines += [*self.goals(), ""]
        for part, (heading, columns) in HEADINGS.items():
            if part in self.rows:
                lines += [heading, "", table_row(*columns), table_row(*["---"] * len(columns)), *self.rows[part], ""]
        lines += [*self.notes, *([""] if self.notes else []), f"{device_name(self.device)}; {machine()}."]
        return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """The card, its memory, and the versions that decide its speed."""
    if device.type != "cuda":
        return "CPU"
    card = torch.cuda.get_device_properties(device)
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {versions}"


def table_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
