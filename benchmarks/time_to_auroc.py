"""Seconds from the start of a command until an epoch has reached an AUROC on val, beside the same training by others.

    python -m benchmarks.time_to_auroc --python PEERS_PYTHON --root DIR --table TABLE [--auroc 0.97] [--epochs 12]

Everything else is as in `benchmarks.fit_vs_peers`: same images, batch, rate and number of epochs, each program's own
schedule, in rounds. A program that never reaches it is said to. Writes the section "Time to AUROC" of RESULTS.md.
"""

import statistics

from benchmarks import fit_vs_peers
from benchmarks.results import write_section


def main() -> None:
    parser = fit_vs_peers.parser(__doc__, epochs=12)
    parser.add_argument("--auroc", type=float, default=0.97)
    given = parser.parse_args()
    timings = fit_vs_peers.measure(given)
    rows = ["| program | seconds, median | each round | epochs needed | best AUROC on val |", "|---|---|---|---|---|"]
    for name, runs in timings.items():
        reached = [run.reached(given.auroc) for run in runs]
        times = [seconds for seconds in reached if seconds is not None]
        needed = [next((str(n + 1) for n, value in enumerate(run.auroc) if value >= given.auroc), "-") for run in runs]
        median = f"{statistics.median(times):.0f}" if len(times) == len(runs) else "never in some rounds"
        each = ", ".join("never" if seconds is None else f"{seconds:.0f}" for seconds in reached)
        best = ", ".join(f"{max(run.auroc):.3f}" for run in runs)
        rows.append(f"| {name} | {median} | {each} | {', '.join(needed)} | {best} |")
    head = f"Until a val AUROC of {given.auroc}. " + fit_vs_peers.command_of("time_to_auroc", given)
    write_section("Time to AUROC", head + "\n".join(rows))


if __name__ == "__main__":
    main()
