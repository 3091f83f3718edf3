"""The jobs as functions: fit, resume, preview, evaluate, predict, any other by its name, and the data of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from finetune.config import build, compose, saved
from finetune.config.settings import JOBS
from finetune.errors import FinetuneError, one_of
from finetune.jobs import resume as resuming
from finetune.model_file import Model
from finetune.python.preview import Preview
from finetune.python.start import job_process, listed, path_of, start, stopped_by_hand, words_and_table, written
from finetune.python.words import UNSET, words_of
from finetune.runs.read import Run, read_run
from finetune.steps import prepare
from finetune.steps.beginning import begin

if TYPE_CHECKING:
    import pandas as pd

    from finetune.data.loading.module import ImageData


def fit(
    data: str | Path | pd.DataFrame = UNSET,
    *,
    label: str | Sequence[str] = UNSET,
    patient: str | None = UNSET,
    split: str | None = UNSET,
    root: str | Path | None = UNSET,
    backbone: str = UNSET,
    weights: str | Path | None = UNSET,
    task: str = UNSET,
    image_size: int = UNSET,
    batch_size: int = UNSET,
    epochs: int = UNSET,
    lr: float = UNSET,
    devices: int | str | list[int] = UNSET,
    seed: int = UNSET,
    folder: str | Path = UNSET,
    config: str | Path | Run = UNSET,
    config_dir: str | Path | Sequence[str | Path] | None = None,
    trust: str | Sequence[str] = UNSET,
    **more: Any,
) -> Run:
    """Fine-tune a network, evaluate it and leave a run folder, as `python -m finetune` does with the same choices.

    What is not given has the default of the command. Lines per epoch are printed as the training goes on. After it the
    process is as before: random states, environment, handlers of signals, loggers, a Hydra of the user's.

    Args:
        data: name of a data set (`chestxray`), a table of images (csv, tsv, parquet), a folder with one of images for
            each class, or a DataFrame with a row per image. The images' paths stand in the column `path`: absolute, or
            relative to `root`, by default the table's folder, for a DataFrame the working folder. A DataFrame is
            written into the run folder as table.csv, with all its columns.
        label: column with the class, or list of columns of 1, 0, -1 and blank.
        patient: column with the patient's id; all images of a patient are in one split.
        split: column with train, val and test; by default the splits are drawn by patient.
        backbone: as `list_models()` names it.
        weights: what to start from: "default", a timm tag, a file, or None for random weights.
        task: classify, segment or detect.
        batch_size: over all devices together.
        epochs: to train.
        lr: the highest learning rate.
        devices: processes on this machine, each a GPU, or a share of the cores.
        seed: of everything random but the splits, which `data__seed` decides.
        folder: the run folder; by default outputs/<data>-<backbone>/<stamp>.
        config: a config.yaml of a run, or a part of one, in place of the defaults. Other arguments take precedence.
        config_dir: folders with choices of your own, as `--config-dir` of the command.
        trust: modules of your own whose classes may be built, as `trust=[...]` of the command.
        more: a group by the name of a choice (`finetuning="linear_probe"`, `loss="focal"`), or any other key of the
            configuration, as `optimizer__weight_decay=0.1` or `**{"optimizer.weight_decay": 0.1}`.

    Returns:
        What `finetune.read_run` gives for the run folder, with `.scores`, `.model`, `.report`, `.predictions`.

    Raises:
        FinetuneError: as the command reports it; no run that looks complete is left.
        KeyboardInterrupt: the training was stopped by hand; `finetune.resume(FOLDER)` goes on with it.

    Example:
        >>> run = finetune.fit("images.csv", label="diagnosis", patient="patient_id", backbone="resnet18", epochs=20)
        >>> run.scores["test"]["macro"]["auroc"]
        {'value': 0.91, 'low': 0.87, 'high': 0.94}
        >>> run.model.predict(["new.png"])
    """
    named = {
        "label": label, "patient": patient, "split": split, "root": root, "backbone": backbone, "weights": weights,
        "task": task, "image_size": image_size, "batch_size": batch_size, "epochs": epochs, "lr": lr,
        "devices": devices, "seed": seed, "folder": folder, "config": config, "trust": trust,
    }  # fmt: skip
    return read_run(start("fit", data, {**named, **more}, config_dir).folder)


def resume(run: str | Path | Run, *, config_dir: str | Path | Sequence[str | Path] | None = None, **words: Any) -> Run:
    """Go on with a stopped fit, or train a finished one longer.

    Args:
        run: its folder, or "auto" for the newest unfinished fit below outputs/.
        words: what cannot change the past: `epochs`, `devices`, `num_workers`, `logger`, `trust` and others that the
            command lists.

    Raises:
        FinetuneError: no such run, a finished one, or a word that would change the past.

    Example:
        >>> run = finetune.resume("outputs/images-resnet18/2026-01-31_12-00-00", epochs=30)
    """
    if "data" in words:
        raise FinetuneError("data cannot be set in a resume: the run has its own.")
    arguments = dict(words)
    with job_process(config_dir):
        typed = words_of("fit", listed(arguments))
        folder = resuming.run_to_resume(path_of(run))
        with stopped_by_hand(folder.path):
            resuming.go_on(folder, typed)
    return read_run(folder.path.absolute())


def preview(data: str | Path | pd.DataFrame = UNSET, **words: Any) -> Preview:
    """Look before training: audit, the first batch, trainable parts, time and memory of a fit with the same words.

    Args:
        data: as of `fit`.
        words: those of `fit`, and `steps`, the number of timed steps.

    Example:
        >>> finetune.preview("images.csv", label="diagnosis", patient="patient_id")
    """
    return Preview.read(start("preview", data, words).folder)


def evaluate(
    model: str | Path | Run | Model = "outputs/latest", data: str | Path | pd.DataFrame = UNSET, **words: Any
) -> Run:
    """Score a finished model on a split of its own data, or on all images of other data.

    Args:
        model: a run folder, a model file, a run or a loaded model.
        data: other images, as of `fit`; by default those of the model's fit.
        words: `split` (train, val, test or all), `prevalence`, `map` of class names (`data__map`), and what describes
            the data (`label`, `patient`, `root` ...). The column of splits of a table is `data__split`.

    Returns:
        The evaluation, as `finetune.read_run` gives it: `.scores`, `.predictions`, `.report`.

    Example:
        >>> finetune.evaluate(run, "other_hospital.csv", label=["Pneumonia"], patient="id").scores["all"]
    """
    return read_run(start("evaluate", data, {"model": path_of(model), **words}).folder)


def predict(
    images: str | Path | Sequence[str | Path],
    model: str | Path | Run | Model = "outputs/latest",
    output: str | Path | None = None,
    **words: Any,
) -> pd.DataFrame:
    """Predict a folder of images, or a list, with a row for each; an unreadable image has its reason in `error`.

    `finetune.load(...).predict` takes arrays too, writes no file and stops at an unreadable image.

    Args:
        images: a folder with its subfolders, an image, or a list of images and folders.
        model: a run folder, a model file, a run or a loaded model.
        output: file to write (.csv, .jsonl, .parquet); by default predictions.csv in a folder of its own below
            outputs/predict/.
        words: `batch_size`, `tile`, `overlap`, `operating_point`, `fast`, `heatmaps`, `folder`, `accelerator`.

    Example:
        >>> table = finetune.predict("photos", model=run)
    """
    sources = [images] if isinstance(images, str | Path) else list(images)
    if wrong := [source for source in sources if not isinstance(source, str | Path)]:
        raise FinetuneError(
            f"images holds a {type(wrong[0]).__qualname__}; it takes paths. finetune.load(MODEL).predict takes arrays."
        )
    arguments = {
        "model": path_of(model),
        "input": str(images) if isinstance(images, str | Path) else sources,
        "output": output,
        **words,
    }
    return start("predict", UNSET, arguments).result.read()


def run_job(job: str, data: str | Path | pd.DataFrame = UNSET, **words: Any) -> Path:
    """Any job of the command line by its name; returns the folder that it wrote.

    Args:
        job: such as explain, tune, soup.
        data: as of `fit`.
        words: the job's keys, and those of `fit`.

    Example:
        >>> folder = finetune.run_job("explain", model="outputs/latest", finding="Pneumonia", method="grad_cam")
    """
    if job not in JOBS:
        raise one_of("job", job, JOBS)
    for name in ("model", "runs"):
        if name in words:
            value = words[name]
            words[name] = list(map(path_of, value)) if isinstance(value, list | tuple) else path_of(value)
    return start(job, data, words).folder


def data_module(data: str | Path | pd.DataFrame = UNSET, **words: Any) -> ImageData:
    """The data of a fit with the same words, as a LightningDataModule: read, split, audited, decoded.

    Batches are `{"image": (N, C, S, S), "target": (N, K), "index": (N,)}`; unknown targets are NaN. In a loop without
    Lightning call `set_epoch(epoch)` of the training loader before each pass.

    Args:
        data: as of `fit`.
        words: those of `fit`; images are normalised as the `weights` of the `backbone` ask for.

    Example:
        >>> data = finetune.data_module("photos", backbone="resnet18", image_size=128)
        >>> for batch in data.train_dataloader(): ...
    """
    config_dir = words.pop("config_dir", None)
    with job_process(config_dir), TemporaryDirectory(prefix="finetune-table-") as folder:
        typed, table_of = words_and_table("fit", data, words)
        if table_of.frame is not None:
            typed = written(typed, table_of.write(Path(folder)))
        with saved.as_choices(typed) as chosen:
            settings = build.check(compose.plain(compose.compose(compose.expand(chosen))))
        say = prepare.make_printer(True)
        if settings.demo:
            prepare.make_demo_images(settings.data, settings.trainer.max_epochs, say)
        begun = begin(settings, say)
        preprocessing = begun.preprocessing
        table, images, _ = prepare.decode_and_audit(settings.data, begun.table, preprocessing, say, None)
        augment, mixing = build.augment(settings), build.mixing(settings)
        return prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, augment, mixing)
