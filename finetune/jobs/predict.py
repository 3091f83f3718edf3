"""job=predict: probabilities for a folder, a picture or a list of pictures, as a csv."""

from pathlib import Path
from typing import Any

from finetune import package
from finetune.data import containers
from finetune.data.images import IMAGE_SUFFIXES
from finetune.errors import FinetuneError
from finetune.evaluation.files import write_json_atomic, write_text_atomic
from finetune.jobs import log, run_folder


def pictures(given: Any, argument: str = "input") -> list[Path]:
    """The pictures behind `input=`, or another argument: all below a folder, a single file, or a list of files.

    Raises:
        FinetuneError: nothing there, or a folder without pictures.
    """
    paths: list[Path] = []
    for item in given if isinstance(given, list) else [given]:
        path = Path(str(item))
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not found:
                kinds = " ".join(sorted(IMAGE_SUFFIXES))
                raise FinetuneError(f"{argument}={path} holds no pictures. Looked below it for {kinds}.")
            paths += found
        elif path.exists() or ((member := containers.member(path)) is not None and member.file.exists()):
            paths.append(path)
        else:
            raise FinetuneError(f"{argument}={path} does not exist. Name a folder or a picture.")
    return paths


def predict(config: dict[str, Any], run: Path, words: list[str]) -> None:
    """Read the model, ask it about every picture, write the table; unreadable pictures are listed, not fatal."""
    output = Path(config["output"]) if config["output"] else run / "predictions.csv"
    if output.is_dir() or not output.parent.is_dir():
        raise FinetuneError(f"output={output} cannot be written: {output.parent} must be a folder, the name a file's.")
    paths = pictures(config["input"])
    model = package.load(config["model"])
    table, bad = model.predict_readable(paths, batch_size=config["batch_size"], device=config["trainer"]["accelerator"])
    if bad:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in bad.items())
        print(f"{len(bad)} of {len(paths)} pictures cannot be read and have no row:\n{listed}")
    if table.empty:
        raise FinetuneError(f"input={config['input']}: none of {len(paths)} pictures can be read.")
    log.begin(run, run_folder.command(words))
    write_text_atomic(output, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    write_json_atomic(
        run / "environment.json",
        {
            "command": run_folder.command(words),
            **run_folder.environment(),
            "model": model.weights_hash,
            "unreadable": bad,
        },
    )
    print(f"{len(table)} pictures -> {output}")
