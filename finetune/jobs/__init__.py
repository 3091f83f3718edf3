"""Jobs: what `job=NAME` does, each in a file that reads from top to bottom."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.config.allowed import import_trusted
from finetune.runs.folder import RunFolder
from finetune.training.launch import ranks


def run_job(config: dict[str, Any], run: Path, words: list[str] | None = None, **more: Any) -> Any:
    """Do the configuration's job in the run folder `run`; `words` are the typed words, for the record. Returns the
    job's result: of a fit its FitResult."""
    from finetune.config.settings import parse
    from finetune.runs.log import record

    import_trusted(config)  # they may register backbones and heads
    from finetune.files import resume_word
    from finetune.training.failures import end_on_sigterm, explained

    end_on_sigterm()
    hint = f"Resume with: python -m finetune {resume_word(run)}" if config.get("job") == "fit" else None
    with record(), explained(config, run, hint):
        settings = parse(config)
        return getattr(import_module(f"finetune.jobs.{settings.job}"), settings.job)(
            settings, RunFolder(run), words or [], **more
        )


def follow(place: ranks.Place) -> None:
    """On a rank above 0: do each run that rank 0 sends, and end with it.

    Nothing is composed, no folder made and nothing printed here; output goes to rank_N.log of the run.
    """
    link = ranks.join(place)
    try:
        for message in link.orders():
            run = Path(message["run"])
            if not run.is_dir():
                link.report_failure(f"{run} is not there. The run folder must lie on a disk that all machines share.")
                continue
            with ranks.redirect_output(ranks.log_file(run, place.rank)):
                try:
                    run_job(message["config"], run)
                except Exception as error:
                    link.report_failure(ranks.describe_error(error, run, place))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except RuntimeError:  # torch's error for a broken connection: rank 0 has ended
        raise SystemExit(1) from None
    if link.status:
        time.sleep(5)  # torchrun stops all processes after the first failure: let rank 0 print the reason before
        raise SystemExit(link.status)
