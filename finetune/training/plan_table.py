"""The fine-tuning plan as a table: what each part does in each phase."""

from finetune.training.module import FineTuning


def plan_table(module: FineTuning, max_epochs: int) -> list[str]:
    """Lines: a row per part with its parameters, and for each phase its highest learning rate and its norms' mode."""
    base_rate = module.optimizer([next(module.parameters())]).defaults["lr"]
    phases = sorted(
        (item for item in module.plan.phases.items() if item[1].epoch < max(1, max_epochs)), key=lambda p: p[1].epoch
    )
    ends = [int(phase.epoch) for _, phase in phases[1:]] + [max_epochs]
    header = ["part", "parameters"]
    columns: list[list[str]] = []
    for (name, phase), end in zip(phases, ends, strict=True):
        first, last = int(phase.epoch), end - 1
        header.append(f"{name}: epoch{'s' * (last > first)} {first}{f' to {last}' if last > first else ''}")
        columns.append(
            [
                f"rate {base_rate * state.rate:.2g}, norms {state.norms}"
                if state.trainable
                else "frozen" + ("" if state.norms == "frozen" else f", norms {state.norms}")
                for state in module.states_in(first).values()
            ]
        )
    rows = [header]
    for number, (part, modules) in enumerate(module.parts.items()):
        size = sum(p.numel() for child in modules for p in child.parameters())
        rows.append([part, f"{size:,}", *(column[number] for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for name, count, *rates in rows:
        cells = [name.ljust(widths[0]), count.rjust(widths[1])]
        cells += [rate.ljust(width) for rate, width in zip(rates, widths[2:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
