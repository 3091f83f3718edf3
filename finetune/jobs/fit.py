"""job=fit: from a configuration to a complete run folder."""

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from finetune import weights as weight_files
from finetune.config import build
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation import wording
from finetune.files import write_json_atomic
from finetune.model_file import Model
from finetune.network import Network, NetworkSpec
from finetune.pages import report
from finetune.preprocessing import Preprocessing
from finetune.runs import data_record
from finetune.runs import folder as run_folder
from finetune.runs import known_images as known_images
from finetune.steps import novelty, prepare, scoring
from finetune.steps.worst_errors import worst_errors
from finetune.training import ending
from finetune.training.callbacks import Checkpoint, EpochLines, MetricsTable
from finetune.training.launch import ranks
from finetune.training.launch.cluster import Cluster
from finetune.training.module import Classification


def fit(config: dict[str, Any], run: Path, words: list[str], *, resumed: bool = False) -> None:
    """Read and check the data, build the network, train, evaluate the best epoch, and write the run folder.

    The order matters: what can fail without a picture being decoded comes first, and leaves no file behind; what the
    audit stops leaves its audit.json; scores.json comes last.
    """
    first = ranks.rank() == 0
    say = prepare.sayer(first)
    if first and not resumed:
        run_folder.check_free(run)
    if debug := bool(config.get("debug_run")):
        say(wording.DEBUG)
    prepare.demo(config, say)
    table = prepare.table(config, say, recorded=run if resumed else None)
    recorded = resumed and data_record.table_hash(run) is not None  # what was trained on already
    if recorded:
        data_record.check_samples(run, table)
    prepare.check_trainable(table)
    check_batches(config, table)
    assessment = build.assessment(config)
    assessment.check_columns(table.metadata)
    build.loss(config, table.kind).weights(table.classes, table.targets()[table.rows("train")])  # refused early
    spec, network, of_weights, source = make_network(config, table, say)
    preprocessing = build.preprocessing(config, of_weights)
    if first and not resumed:
        run_folder.begin(run, config, words)
    table, pictures, _ = prepare.pictures(config, table, preprocessing, say, run if first and not recorded else None)
    if recorded:
        data_record.check_data(run, table, pictures)
    if first and resumed:
        run_folder.go_on(run, config, words)
        say(f"going on in {run}")
    if first and not (recorded and (run / known_images.FILE).is_file()):
        known_images.keep(run, table, pictures)
    if first and not recorded:
        run_folder.note(run, weights=source, data=run_folder.of_data(table))
    data = prepare.batches(config, table, pictures, preprocessing, build.augment(config))
    with ranks.launched(config, run) as place:
        train(config, run, table, network, data, say, place)
        load_best(network, run / "checkpoints")
        tables = {
            split: scoring.predictions(network, data, split, config["trainer"]["accelerator"])
            for split in ("val", "test")
            if len(data.rows(split))
        }
    if not first:
        return
    environment = run_folder.read_environment(run)
    run_folder.begin_results(run)
    written = scoring.write(run, tables)
    fitted = assessment.fit(written.get("val"))  # nothing is ever fitted on test
    model = Model(
        network,
        spec,
        table.classes,
        table.kind,
        preprocessing,
        provenance(environment),
        calibration=fitted.calibration,
        operating_points=fitted.operating_points,
        selective=fitted.selective,
        conformal=fitted.conformal,
    )
    model.save(run / "model.safetensors")
    if assessment.novelty:
        accelerator = config["trainer"]["accelerator"]
        novelty.keep(run, network, data, written.get("test"), assessment.novelty, config["seed"], accelerator)
    if "test" in written:
        run_folder.open_test(run, words, len(written["test"]))
    scores = scoring.scores(written, assessment, fitted, config["seed"])
    told_of = written.get("test") or written.get("val")
    if told_of is not None:  # before the report, which shows them
        worst_errors(run, network, data, told_of, assessment.thumbnails, fitted.operating_points)
    report.write_report(run, scores=scores)
    write_json_atomic(run / "scores.json", scores)
    run_folder.end_results(run)
    if debug:
        say(f"{wording.DEBUG} outputs/latest stays as it was.")
    else:
        run_folder.point_latest(run)
    scoring.show(scores, table.synthetic, say)
    say(f"report: {run / 'report.html'}")


def check_batches(config: dict[str, Any], table: SampleTable) -> None:
    """Refuse a share of the batches that is less than one of them."""
    n_ranks = ranks.check(config["trainer"])
    for key, split, shared in (("limit_train_batches", "train", 1), ("limit_val_batches", "val", n_ranks)):
        share = config["trainer"][key]
        batches = math.ceil(math.ceil(len(table.rows(split)) / config["data"]["batch_size"]) / shared)
        if isinstance(share, float) and batches and int(share * batches) == 0:
            raise FinetuneError(
                f"trainer.{key}={share} of {batches} batch(es) is less than one. Give a number of batches, or at least "
                f"{1 / batches:.3g}."
            )


def make_network(
    config: dict[str, Any], table: SampleTable, say: prepare.Say
) -> tuple[NetworkSpec, Network, Preprocessing | None, dict[str, Any]]:
    """The network with its weights loaded, what pictures they want, and where they came from."""
    L.seed_everything(config["seed"], verbose=False)
    spec = build.network_spec(config, len(table.classes))
    network = spec.build()
    wanted = config["backbone"]["weights"]
    if wanted in (None, "none"):
        say(f"{spec.backbone} starts from RANDOM weights (backbone.weights=none).")
        if frozen := build.plan(config).never_learns(list(network.parts()), network.new_parts):
            say(
                f"WARNING: no phase of finetuning trains {', '.join(frozen)}: the head learns from RANDOM features. "
                "Use pretrained weights (backbone.weights=default), or finetuning=full."
            )
        return spec, network, None, {"source": None, "random": True}
    loaded = weight_files.load_into(network.backbone, spec.backbone, wanted)
    say(f"{spec.backbone} starts from {loaded}.")
    trained, size = loaded.preprocessing, config["data"]["image_size"]
    if trained is not None and trained.image_size != size:
        say(f"These weights were trained at {trained.image_size} px, pictures go in at data.image_size={size}.")
    account = loaded.to_dict()
    account["used"] = len(loaded.used)
    return spec, network, trained, {**account, "random": False}


def make_task(config: dict[str, Any], table: SampleTable, network: Network, data: ImageData) -> Classification:
    """The LightningModule: network, loss, optimizer, schedule and plan together."""
    network.to(memory_format=torch.channels_last)
    if config["compile"]:
        network.compile()
    loss = build.loss(config, table.kind)
    return Classification(
        network,
        loss,
        build.make(config, "optimizer"),
        build.make(config, "schedule"),
        build.plan(config),
        classes=table.classes,
        loss_weights=loss.weights(table.classes, table.targets()[data.rows("train")]),
        seed=config["seed"],
        max_steps=config["trainer"]["max_steps"],
        config=config,
    )


def train(
    config: dict[str, Any],
    run: Path,
    table: SampleTable,
    network: Network,
    data: ImageData,
    say: prepare.Say,
    place: ranks.Place,
) -> None:
    """Fit with Lightning, from the last checkpoint where there is one."""
    task = make_task(config, table, network, data)
    monitor = "val/auroc" if scoring.has_auroc(table, "val") else "val/loss"
    if monitor == "val/loss":
        say("No class has both positives and negatives in val: its AUROC is undefined, the best epoch is by val/loss.")
    metrics = MetricsTable(run / "metrics.csv")
    checkpoint = Checkpoint(run / "checkpoints", monitor, keep_all=config["callbacks"]["keep_all_checkpoints"])
    callbacks = [
        metrics,
        EpochLines(metrics),
        checkpoint,
        *build.extra_callbacks(config, monitor),
    ]
    settings = {key: value for key, value in config["trainer"].items() if value is not None}
    end = ending.Ending(settings.pop("max_steps"), settings.pop("max_time", None))
    callbacks += end.callbacks()
    settings["enable_progress_bar"] = settings["enable_progress_bar"] and sys.stdout.isatty()
    if settings["enable_progress_bar"]:
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks.append(RichProgressBar())
    if place.size > 1:
        settings["strategy"] = DDPStrategy(find_unused_parameters=task.parts_change())
        if any(state.norms in ("train", "stats") for state in task.states_in(0).values()):
            say(f"Batch norms that train use the statistics of a process's own part of a batch (1/{place.size} of it).")
    trainer = L.Trainer(
        default_root_dir=run,
        logger=build.loggers(config, run),
        callbacks=callbacks,
        plugins=[Cluster(place)],
        use_distributed_sampler=False,
        enable_checkpointing=True,
        **settings,
    )
    start = ending.resume_point(run / "checkpoints")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and what the lines of epochs say already
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # lightning's own, each time
    try:
        trainer.fit(task, datamodule=data, ckpt_path=start, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            print(f"stopped. Go on by: python -m finetune resume={run}", file=sys.stderr)
            raise SystemExit(130) from None
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    if early := end.sentence(trainer):
        say(early)
    if trainer.is_global_zero and checkpoint.best_epoch is not None:
        run_folder.note(run, best=checkpoint.best(), processes=place.size, threads=torch.get_num_threads())
    trainer.strategy.barrier()  # the first rank has written the checkpoint that all are about to read


def load_best(network: Network, folder: Path) -> None:
    """The best epoch's weights in 32 bits, every key of them; the last epoch's where none was validated."""
    path = next((folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None)
    if path is None:
        raise FinetuneError(f"{folder} holds no checkpoint: nothing was trained.")
    network.float()  # trainer.precision=64-true, bf16-true and 16-true have changed it
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True)


def provenance(environment: dict[str, Any]) -> dict[str, Any]:
    """What the model file says of where it came from."""
    return {key: environment.get(key) for key in ("command", "versions", "commit", "seed", "weights", "data")}
