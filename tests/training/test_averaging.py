"""Averages of the weights: values worked by hand, and what a training saves, validates and resumes."""

import csv

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from finetune.errors import FinetuneError
from finetune.network import NetworkSpec
from finetune.plan import Phase, Plan
from finetune.steps.training import load_best
from finetune.training.averaging import Ema, Swa
from finetune.training.norms import recompute_statistics
from tests.training import tiny
from tests.two_ranks import run_two


def follow(average, values, update):
    """The average of one number over its `values`, the first of which it starts from."""
    average.average = {"w": torch.tensor([values[0]]), "n": torch.tensor(0)}
    for number, value in enumerate(values[1:]):
        average.live = {"w": torch.tensor([value]), "n": torch.tensor(number)}
        update(average)
    return average.average["w"].item()


class Trainer:
    """The parts of a trainer that an update reads."""

    global_step = 0


def test_an_exponential_average_by_hand():
    trainer = Trainer()

    def step(average):
        trainer.global_step += 1
        average.on_train_batch_end(trainer, None)
        average.on_train_batch_end(trainer, None)  # a batch within a group makes no step

    # d = min(0.15, 1 / 10) = 0.1, then min(0.15, 2 / 11) = 0.15
    first = 0.1 * 1.0 + 0.9 * 2.0
    average = Ema(0.15)
    assert follow(average, [1.0, 2.0, 4.0], step) == pytest.approx(0.15 * first + 0.85 * 4.0)
    assert (average.updates, average.average["n"].item()) == (2, 1)
    assert follow(Ema(0.999), [0.3] * 5, step) == np.float32(0.3)


def test_a_uniform_average_by_hand():
    def update(average):
        average.update(1 / (average.updates + 1))

    assert follow(Swa(), [9.0, 1.0, 2.0, 6.0], update) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ema(1.0), "averaging.decay=1.0 must be at least 0 and below 1"),
        (lambda: Swa(-0.1), "averaging.start=-0.1 must be at least 0 and below 1"),
        (lambda: Swa(0.5).check(1000, 500), "begins at a share of trainer.max_epochs, which trainer.max_steps=500"),
        (lambda: Swa(0.75).check(4), "averaging.start=0.75 of trainer.max_epochs=4 leaves 1 epoch"),
    ],
)
def test_values_that_are_wrong_are_named(make, message):
    with pytest.raises(FinetuneError, match=message):
        make()


def test_statistics_are_the_mean_over_the_batches():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))
    network[0].momentum = 0.3
    batches = [torch.tensor(values).view(-1, 1, 1, 1) for values in ([0.0, 2.0], [4.0, 8.0, 6.0])]
    recompute_statistics(network, [network[0]], [{"image": batch} for batch in batches], torch.device("cpu"))
    assert network[0].running_mean.item() == pytest.approx((1 + 6) / 2)
    assert network[0].running_var.item() == pytest.approx((2 + 4) / 2)  # unbiased variances
    assert (network[0].momentum, network.training) == (0.3, True)


class States(L.Callback):
    """The trained weights at the end of each epoch."""

    def __init__(self):
        self.ends = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(tiny.state(pl_module.network))


def fit(folder, average, epochs=4, plan=None, resume=None, callbacks=(), **options):
    recorder = States()
    callbacks = [average, recorder, *callbacks]
    module = tiny.module(plan, **options)
    start = {} if resume is None else {"ckpt_path": resume, "weights_only": True}
    tiny.trainer(folder, epochs, callbacks).fit(module, tiny.data(), **start)
    return module, recorder


def stored(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def tensors_of(checkpoint):
    return {name.removeprefix("network."): value for name, value in checkpoint["state_dict"].items()}


def test_what_is_validated_is_what_best_holds_and_a_model_gets(tmp_path):
    module, recorder = fit(tmp_path, Ema(0.9))
    best = stored(tmp_path, "best.ckpt")
    assert best["weights"] == "ema"
    assert (best["averaging"]["kind"], best["averaging"]["updates"]) == ("ema", best["global_step"])
    for name, value in best["averaging"]["trained"].items():
        assert torch.equal(value, recorder.ends[best["epoch"]][name])
    network = NetworkSpec("resnet20_cifar", 2, in_channels=1, head_options={"dropout": 0.2}).build().eval()
    assert load_best(network, tmp_path / "checkpoints") == "ema"
    assert all(torch.equal(value, tensors_of(best)[name]) for name, value in network.state_dict().items())
    batches = list(tiny.data().val_dataloader())
    with torch.no_grad():
        rows = [module.objective.predict(network, batch) for batch in batches]
    joined = {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}
    row = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))[best["epoch"]]
    assert module.objective.score(joined)["val/loss"] == pytest.approx(float(row["val/loss"]), rel=1e-4)
    trained = tiny.state(module.network)
    assert all(torch.equal(trained[name], value) for name, value in recorder.ends[-1].items())


def test_without_averaging_a_checkpoint_holds_the_trained_weights(tmp_path):
    tiny.trainer(tmp_path, 1).fit(tiny.module(), tiny.data())
    assert stored(tmp_path)["weights"] == "trained"


def test_a_mean_of_the_last_epochs_with_its_own_statistics(tmp_path):
    module, recorder = fit(tmp_path, Swa(0.5))
    last = stored(tmp_path)
    assert (last["weights"], last["averaging"]["updates"]) == ("swa", 2)
    average, (a, b) = tensors_of(last), recorder.ends[-2:]
    parameters = dict(module.network.named_parameters())
    for name, value in average.items():
        if name in parameters:
            torch.testing.assert_close(value, (a[name] + b[name]) / 2)
    network = NetworkSpec("resnet20_cifar", 2, in_channels=1, head_options={"dropout": 0.2}).build()
    network.load_state_dict(average)
    norms = [child for child in network.modules() if isinstance(child, nn.BatchNorm2d)]
    recompute_statistics(network, norms, tiny.data().plain_train_loader(), torch.device("cpu"))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, average[name])


@pytest.mark.parametrize("average", [Ema, Swa])
def test_frozen_parts_equal_their_average_to_the_last_bit(tmp_path, average):
    fit(tmp_path, average(0.5), plan=Plan({"head": Phase(0, ["head"])}))
    last = stored(tmp_path)
    differing = {
        name for name, value in tensors_of(last).items() if not torch.equal(value, last["averaging"]["trained"][name])
    }
    assert differing == {"head.fc.weight", "head.fc.bias"}


def test_a_part_that_unfreezes_starts_its_average_from_its_weights(tmp_path):
    """With a decay of 0 after the unfreezing the average would be the weights; 0.5 lies between the two."""
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(1, ["all"])}, norms="frozen")
    start = tiny.state(tiny.module(plan).network)["backbone.conv1.weight"]
    _, recorder = fit(tmp_path, Ema(0.5), epochs=2, plan=plan)
    average, end = tensors_of(stored(tmp_path))["backbone.conv1.weight"], recorder.ends[-1]["backbone.conv1.weight"]
    assert torch.equal(recorder.ends[0]["backbone.conv1.weight"], start)
    assert 0 < (average - start).norm() < (end - start).norm()


@pytest.mark.parametrize("make", [lambda: Ema(0.9), lambda: Swa(0.25)])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resuming_equals_never_stopping(tmp_path, make, stop_after):
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(2, ["all"], rate=0.5)})

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == stop_after:
                raise RuntimeError("power failure")

    fit(tmp_path / "a", make(), plan=plan)
    with pytest.raises(RuntimeError, match="power failure"):
        fit(tmp_path / "b", make(), plan=plan, callbacks=[Stop()])
    fit(tmp_path / "b", make(), plan=plan, resume=tmp_path / "b/checkpoints/last.ckpt")
    a, b = (stored(tmp_path / name) for name in "ab")
    assert a["weights"] == b["weights"] == make().name
    assert a["averaging"]["updates"] == b["averaging"]["updates"]
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    for name, value in a["averaging"]["trained"].items():
        assert torch.equal(value, b["averaging"]["trained"][name]), name
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())) for name in "ab"]
    assert [row["val/loss"] for row in rows[0]] == [row["val/loss"] for row in rows[1]]


def test_a_network_in_16_bits_is_averaged_in_32(tmp_path):
    average = Ema(0.999)
    network = nn.Linear(1, 1).to(torch.bfloat16)
    average.on_fit_start(None, type("Module", (), {"network": network}))
    assert average.average["weight"].dtype == torch.float32
    assert "keeps a second copy of the network" in average.note(network)


def test_two_ranks_hold_the_same_average(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run_two("tests.training.ranks_averaging")
