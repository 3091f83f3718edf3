"""Settings of the Trainer that a run can do nothing with are refused before any data are read."""

import pytest

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.precision=transformer-engine", "is for transformers, these networks are convolutions. Use 32-true"),
        ("trainer.precision=transformer-engine-float16", "is for transformers"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 leaves nothing to learn"),
        ("trainer.limit_train_batches=0.0", r"trainer.limit_train_batches=0\.0 leaves nothing to learn"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0 leaves nothing to choose by"),
        ("trainer.max_steps=0", "trainer.max_steps=0 must be 1 or more, or -1"),
        ("trainer.max_steps=-2", "trainer.max_steps=-2 must be 1 or more, or -1"),
        ("trainer.max_time=soon", "'soon'.* is not a valid duration"),
        ("trainer.max_time=-1", "trainer.max_time=-1 must be DD:HH:MM:SS"),
        ("trainer.max_time='00:00:00:00'", "trainer.max_time=00:00:00:00 leaves no time"),
        ("trainer.profiler=foo", "The Trainer refuses these settings: .*profiler"),
        ("trainer.num_nodes=2", "trainer.num_nodes=2, but only a launcher starts processes on other machines"),
        ("trainer.sync_batchnorm=true", r"trainer\.sync_batchnorm=true .* GPUs only\. Leave it false, and give each"),
        ("+trainer.logger=false", "trainer.logger=False cannot be set: loggers are a group"),
        ("+trainer.strategy=fsdp", "trainer.strategy=fsdp cannot be set: trainer.devices"),
        ("+trainer.val_check_interval=0.5", "a checkpoint is of a whole epoch"),
    ],
)
def test_refused(word, message):
    with pytest.raises(FinetuneError, match=message):
        build.check(compose.plain(compose.compose([word, "trainer.accelerator=cpu"])))


def test_weights_of_16_bits_do_not_go_with_lean_memory():
    for memory in ("lean", "minimal"):
        words = [f"backbone.memory={memory}", "trainer.precision=bf16-true"]
        with pytest.raises(
            FinetuneError, match=rf"trainer\.precision=bf16-true needs backbone\.memory=standard, not {memory}"
        ):
            build.check(compose.plain(compose.compose(words)))
    for memory, precision, ours in (("auto", "bf16-true", "standard"), ("lean", "64-true", "lean")):
        config = compose.plain(compose.compose([f"backbone.memory={memory}", f"trainer.precision={precision}"]))
        assert build.network_spec(build.check(config), 2).build().backbone.memory == ours


def test_synchronised_norms_on_gpus_do_not_go_with_lean_memory(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    words = ["trainer.sync_batchnorm=true", "backbone.memory=lean"]
    settings = parse(compose.plain(compose.compose(words)))
    with pytest.raises(FinetuneError, match=r"trainer\.sync_batchnorm=true needs backbone\.memory=standard, not lean"):
        build.network_spec(settings, 2)
    settings = parse(compose.plain(compose.compose(words[:1])))
    assert settings.trainer.set_arguments["sync_batchnorm"] is True  # as the Trainer gets it
    assert build.network_spec(settings, 2).backbone_options["memory"] == "standard"


@pytest.mark.parametrize(
    "word",
    [
        *(
            f"trainer.precision={p}"
            for p in ("64-true", "64", "16-true", "bf16-true", "bf16", "16-mixed", "bf16-mixed")
        ),
        "trainer.max_time='00:00:00:01'",
        "trainer.limit_val_batches=1",
        "+trainer.fast_dev_run=true",
        "+trainer.overfit_batches=2",
    ],
)
def test_taken(word):
    build.check(compose.plain(compose.compose([word, "trainer.accelerator=cpu"])))
