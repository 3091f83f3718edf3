"""Going on with a stopped fit: its own config.yaml, and of what is typed only what cannot change the past."""

import os
from pathlib import Path
from typing import Any

from finetune import build, compose
from finetune.errors import FinetuneError
from finetune.jobs import run_folder, run_job

MAY_CHANGE = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "logger",
    "trust",
)
"""Keys that a resume may set anew."""


def newest_unfinished(outputs: Path = Path("outputs")) -> Path:
    """The unfinished fit begun last."""
    found = [
        path.parent
        for path in outputs.glob("**/config.yaml")
        if not run_folder.is_complete(path.parent) and compose.read(path.parent).get("job") == "fit"
    ]
    if not found:
        raise FinetuneError(f"resume=auto: there is no unfinished fit below {outputs}/. Name its folder: resume=DIR.")
    return max(found, key=lambda run: (run / "config.yaml").stat().st_mtime)


def resume(argv: list[str]) -> None:
    """Go on in the folder that `resume=` names.

    Raises:
        FinetuneError: no such run, a finished one (unless it is to train longer), or a key that would change the past.
    """
    named = [word.partition("=")[2] for word in argv if word.startswith("resume=")]
    if len(named) != 1 or not named[0]:
        raise FinetuneError("resume= must be given once: a run folder, or auto for the newest unfinished fit.")
    run = newest_unfinished() if named[0] == "auto" else Path(named[0])
    config = compose.read(run)
    if config.get("job") != "fit":
        raise FinetuneError(f"resume={run}: only a fit can be resumed, this was job={config.get('job')}.")
    words = [word for word in argv if not word.startswith("resume=")]
    longer = change(config, words)
    if run_folder.is_complete(run):
        if not longer:
            raise FinetuneError(
                f"resume={run} is complete already. To train longer, add trainer.max_epochs=N (or max_steps, max_time)."
            )
        os.unlink(run / "scores.json")  # from now on it is unfinished again
    build.check(config)
    run_folder.write_config(run, config)
    print(f"going on in {run}", flush=True)
    run_job(config, run, ["resume=" + str(run), *words], resumed=True)


def change(config: dict[str, Any], words: list[str]) -> bool:
    """Set the typed keys in `config`; whether the run is to train longer than before."""
    before = dict(config["trainer"])
    for override in compose.parse(words):
        key = override.key_or_group
        if key not in MAY_CHANGE or override.is_sweep_override():
            raise FinetuneError(
                f"{override.input_line!r} cannot be set in a resume: it would change what was done already. "
                f"Only these may: {', '.join(MAY_CHANGE)}."
            )
        if key == "logger":
            composed = compose.plain(compose.compose([str(override.input_line)]))
            config["logger"] = composed["logger"]
            continue
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = override.value()
    now = config["trainer"]
    return (
        now["max_epochs"] > before["max_epochs"]
        or (now["max_steps"] != before["max_steps"] and not 0 <= now["max_steps"] <= before["max_steps"])
        or (before["max_time"] is not None and now["max_time"] != before["max_time"])
    )
