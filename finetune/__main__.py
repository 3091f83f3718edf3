"""python -m finetune [job=fit] backbone=... data=... key=value: from the command line to a job."""

import os
import sys
from pathlib import Path

HELP = """\
Fine-tune ResNets and DenseNets on your own images, and know how far to trust the result.

  python -m finetune backbone=resnet50 data=chestxray
  python -m finetune data=folder data.root=photos backbone=densenet121 trainer.max_epochs=20
  python -m finetune data=csv data.table=images.csv data.label=diagnosis data.patient=patient_id
  python -m finetune -m backbone=resnet18,densenet121 seed=0,1       one run after the other
  python -m finetune resume=outputs/chestxray-resnet50/RUN           resume a stopped run
  python -m finetune config=outputs/RUN/config.yaml seed=1           a new run; what you type wins over the file
  python -m finetune job=evaluate model=outputs/latest split=test
  python -m finetune job=explain model=outputs/latest               heat maps, their tests, and the worst errors
  python -m finetune job=compare runs=[outputs/RUN,outputs/OTHER]   or runs=outputs/multirun/STAMP
  python -m finetune job=soup runs=outputs/multirun/STAMP            the mean of the weights of several fits
  python -m finetune job=tune data=folder data.root=photos trials=50   hyperparameter search on val
  python -m finetune job=predict model=outputs/latest input=photos output=preds.csv   folder, list, archive, - for stdin
  python -m finetune job=export model=outputs/latest format=onnx precision=int8   one file for other programs
  python -m finetune job=serve model=outputs/latest                  a page and a JSON API over a finished run
  python -m finetune job=push model=outputs/latest to=ORG/NAME        onto the Hugging Face hub, with a model card
  python -m finetune job=preview data=folder data.root=photos        look before training: audit, batch, time, memory

Groups, chosen as group=choice; each choice is a file conf/<group>/<choice>.yaml that explains its keys:
{groups}

Keys, set as key=value (all of them: python -m finetune --cfg job):
  data.root=DIR  data.image_size=224  data.batch_size=32 (over all devices)  data.seed=0 (splits only)
  backbone.weights=default|none|TAG|hf-hub:ORG/NAME|PATH (a file or a run)  backbone.in_channels=1|3
  trainer.max_epochs=N  trainer.devices=N  trainer.accelerator=cpu|gpu  optimizer.lr=X  seed=0
  hydra.run.dir=DIR  the run folder; by default outputs/<data>-<backbone>/<stamp>

-m, --multirun        run every combination of the comma-separated values
-c, --cfg job         print the composed configuration and stop
-cd, --config-dir DIR read DIR/<group>/<choice>.yaml as further choices (several: name the flag again)
--version             the version of this program
-h, --help            this text
"""


PLACES = ("RANK", "SLURM_PROCID")
"""Set by launchers, and by a first rank for the processes it starts, which have no words on their command line."""


def help_text() -> str:
    """The help text, made from file names without imports."""
    inside, beside = Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf"
    conf = inside if inside.is_dir() else beside
    lines = []
    for folder in sorted(p for p in conf.iterdir() if p.is_dir()):
        names = sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_"))
        line = f"  {folder.name:<13}"
        for name in names:
            if len(line) + len(name) > 116:
                lines.append(line.rstrip(", ") + ",")
                line = " " * 15
            line += f"{name}, "
        lines.append(line.rstrip(", "))
    return HELP.format(groups="\n".join(lines))


def other_package_warning() -> str | None:
    """A warning if the package `finetune` of the index is installed too: both import as finetune; else None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        other_version = version("finetune")
    except PackageNotFoundError:
        return None
    return (
        f"the package finetune {other_version} is installed besides finetune-vision, and either hides files of the "
        "other. To repair: pip uninstall -y finetune finetune-vision, then install finetune-vision again."
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command line; an error of the user is one message and exit status 1."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv) or not (argv or any(name in os.environ for name in PLACES)):
        print(help_text())
        return
    if "--version" in argv:
        from finetune import __version__

        print(f"finetune {__version__}")
        return
    if warning := other_package_warning():
        print(f"warning: {warning}", file=sys.stderr)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks up its newest version on the internet
    from finetune.errors import FinetuneError

    try:
        dispatch(argv)
    except FinetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        raise SystemExit(130) from None


def dispatch(argv: list[str]) -> None:
    """Start as a rank that follows rank 0, as a resume, or with a configuration to compose."""
    from finetune.training.launch import ranks

    if (place := ranks.launched_place()) is not None and place.rank > 0:
        from finetune.jobs import follow

        follow(place)
        return
    with ranks.lead():
        if any(word.startswith("resume=") for word in argv):
            from finetune.jobs.resume import resume

            resume(argv)
        else:
            compose_and_run(argv)


def compose_and_run(argv: list[str]) -> None:
    """Check the whole configuration, then let Hydra make the run folder (or several) and start the job."""
    import argparse

    from finetune.config import compose, running, saved
    from finetune.config.overrides import CONFIG_DIRS

    parser = argparse.ArgumentParser(prog="python -m finetune", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("-cd", "--config-dir", action="append", default=[])
    options, words = parser.parse_known_args(argv)
    if flags := [word for word in words if word.startswith("-")]:
        raise compose.FinetuneError(
            f"{flags[0]} is not a flag of this program: --multirun, --cfg job, --config-dir DIR, --version, --help are."
        )
    if options.config_dir:
        os.environ[CONFIG_DIRS] = os.pathsep.join(os.path.abspath(folder) for folder in options.config_dir)
    with saved.as_choices(words, sweep=options.multirun) as chosen:
        expanded = compose.expand(chosen, sweep=options.multirun)
        if options.cfg:
            print(compose.as_yaml(compose.compose(expanded, sweep=options.multirun)))
            return
        from finetune.jobs import follow, run_job

        audit_context = None
        if options.multirun:
            from finetune.steps.prepare import auditing_once

            audit_context = auditing_once()
        running.run(expanded, words, run_job, multirun=options.multirun, context=audit_context, follow=follow)


if __name__ == "__main__":
    main()
