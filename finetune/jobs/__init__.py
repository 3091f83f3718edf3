"""Jobs: what `job=NAME` does, each in a file that reads from top to bottom."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.config.allowed import import_trusted
from finetune.errors import one_of
from finetune.runs.folder import RunFolder
from finetune.training.launch import ranks

JOBS = ("fit", "evaluate", "explain", "predict", "preview", "compare")


def run_job(config: dict[str, Any], run: Path, words: list[str] | None = None, **more: Any) -> Any:
    """Do the configuration's job in the run folder `run`; `words` is what was typed, for the record. What the job
    returns: of a fit its FitResult."""
    name = config["job"]
    if name not in JOBS:
        raise one_of("job", name, JOBS)
    from finetune.runs.log import record

    import_trusted(config)  # they may register backbones and heads
    with record():
        return getattr(import_module(f"finetune.jobs.{name}"), name)(config, RunFolder(run), words or [], **more)


def follow(place: ranks.Place) -> None:
    """On a rank above 0: do each run that rank 0 hands out, and end with it.

    Nothing is composed, no folder made and nothing printed here; what there is to say goes to rank_N.log of the run.
    """
    link = ranks.join(place)
    try:
        for order in link.orders():
            run = Path(order["run"])
            if not run.is_dir():
                link.fail(f"{run} is not there. The run folder must lie on a disk that all machines share.")
                continue
            with ranks.logged(ranks.log_file(run, place.rank)):
                try:
                    run_job(order["config"], run)
                except Exception as error:
                    link.fail(ranks.reason(error, run, place))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except RuntimeError:  # torch's own for a broken connection: rank 0 is gone
        raise SystemExit(1) from None
    if link.status:
        time.sleep(5)  # torchrun stops all processes once one has failed: it should be rank 0, which is just saying why
        raise SystemExit(link.status)
