"""Training for real, on a tiny net: what is frozen stays, what is resumed is the same."""

import csv

import lightning as L
import pytest
import torch
from torch import nn

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError
from finetune.network import NetworkSpec
from finetune.plan import Phase, Plan
from finetune.training.module import FineTuning
from finetune.training.parts import parameter_groups
from finetune.training.schedules import OneCycle
from tests.training import tiny


class Watch(L.Callback):
    """Notes what the network was at the start of each epoch and how it trained."""

    def __init__(self):
        self.states, self.modes, self.batches, self.rates = [], [], {}, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.states.append(tiny.state(pl_module.network))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.setdefault(trainer.current_epoch, []).append(batch["index"].tolist())
        self.rates.append({g["part"]: g["lr"] for g in trainer.optimizers[0].param_groups})
        norms = {n: m.training for n, m in pl_module.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
        backbone = [m for part, ms in pl_module.parts.items() if part != "head" for m in ms]
        self.modes.append((trainer.current_epoch, norms, any(m.training for m in backbone)))

    def on_train_end(self, trainer, pl_module):
        self.states.append(tiny.state(pl_module.network))


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_linear_probe_moves_nothing_but_the_head(tmp_path):
    watch = Watch()
    task = tiny.module(Plan({"head": Phase(0, ["head"])}))
    tiny.trainer(tmp_path, 2, [watch]).fit(task, tiny.data())
    assert moved(watch.states[0], watch.states[-1]) == {"head.fc.weight", "head.fc.bias"}  # running statistics too
    assert not any(any(norms.values()) for _, norms, _ in watch.modes)
    assert not any(backbone_trains for *_, backbone_trains in watch.modes)


@pytest.mark.parametrize(
    ("neck", "head"), [("narrow", "classify"), ("top_down", "every_map"), ("top_down", "classify")]
)
@pytest.mark.parametrize("name", ["linear_probe", "head_then_full", "gradual"])
def test_a_plan_that_freezes_the_backbone_trains_whatever_is_new(tmp_path, own_parts, neck, head, name):
    watch = Watch()
    config = compose.plain(compose.compose([f"finetuning={name}", "finetuning.head_rate=2"]))
    task = tiny.module(build.plan(parse(config)))
    network = NetworkSpec("resnet20_cifar", 2, 1, head, neck=neck).build()
    assert network.new_parts == ("neck", "head")
    assert list(network.parts())[-3:] == ["stage3", "neck", "head"]
    task = FineTuning(network, task.objective, task.optimizer, task.schedule, task.plan)
    tiny.trainer(tmp_path, 1, [watch]).fit(task, tiny.data())
    new = {key for key in watch.states[0] if key.startswith(("neck.", "head."))}
    if (neck, head) == ("top_down", "classify"):  # a head on the last map alone reads nothing of the finer ones
        new -= {f"neck.lateral.{number}.{kind}" for number in (0, 1) for kind in ("weight", "bias")}
    assert moved(watch.states[0], watch.states[-1]) == new
    assert all(rates["neck"] == rates["head"] > rates["stage3"] == 0 for rates in watch.rates)


@pytest.mark.parametrize("name", ["resnet20_cifar", "densenet_40_12", "densenet121", "resnetv2_50"])
def test_every_plan_fits_networks_of_three_stages_and_of_four(name):
    for plan in compose.choices()["finetuning"]:
        words = [f"backbone={name}", f"finetuning={plan}", "backbone.weights=none"]
        build.check(compose.plain(compose.compose(words)))
    with torch.device("meta"):
        network = build.network_spec(parse(compose.plain(compose.compose(words))), 2).build()
    plan = build.plan(parse(compose.plain(compose.compose([f"backbone={name}", "finetuning=gradual"]))))
    trained = [
        [p for p, s in plan.at(e, list(network.parts()), network.new_parts).items() if s.trainable] for e in range(8)
    ]
    stages = network.backbone.num_stages
    assert trained[0] == trained[1] == ["head"]
    assert trained[2] == [f"stage{stages}", "head"]
    assert trained[4] == [f"stage{stages - 1}", f"stage{stages}", "head"]
    assert trained[6] == list(network.parts())
    config = compose.plain(
        compose.compose([f"backbone={name}", "finetuning=gradual", "finetuning.phases.last.train=[stage9,new]"])
    )
    with pytest.raises(FinetuneError, match=r"last.train=stage9 is not known. .*stage3, .*head, all, backbone, new"):
        build.check(config)


def test_frozen_norms_in_a_trained_network(tmp_path):
    watch = Watch()
    tiny.trainer(tmp_path, 1, [watch]).fit(tiny.module(Plan(norms="frozen")), tiny.data())
    changed = moved(watch.states[0], watch.states[-1])
    assert "backbone.conv1.weight" in changed
    assert not {name for name in changed if "bn" in name}
    watch = Watch()
    tiny.trainer(tmp_path, 1, [watch]).fit(tiny.module(Plan(norms="stats")), tiny.data())
    changed = moved(watch.states[0], watch.states[-1])
    assert "backbone.bn1.running_mean" in changed
    assert not {"backbone.bn1.weight", "backbone.bn1.bias"} & changed
    watch = Watch()
    tiny.trainer(tmp_path, 1, [watch]).fit(tiny.module(Plan(norms="affine")), tiny.data())
    changed = moved(watch.states[0], watch.states[-1])
    assert "backbone.bn1.weight" in changed
    assert "backbone.bn1.running_mean" not in changed


def test_head_then_full_unfreezes_at_its_epoch_also_with_one_cycle(tmp_path):
    watch = Watch()
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(2, ["all"], rate=0.5)})
    tiny.trainer(tmp_path, 4, [watch]).fit(tiny.module(plan, OneCycle()), tiny.data())
    start, one, two, three, _ = watch.states
    assert moved(start, two) == {"head.fc.weight", "head.fc.bias"}
    assert "backbone.conv1.weight" in moved(two, three)
    assert one["head.fc.weight"].ne(two["head.fc.weight"]).any()
    steps = len(watch.rates) // 4
    assert all(rates["stem"] == 0 and rates["head"] > 0 for rates in watch.rates[: 2 * steps])
    assert all(rates["stem"] == rates["head"] > 0 for rates in watch.rates[2 * steps :])
    assert all(list(norms.values()) == [epoch >= 2] * len(norms) for epoch, norms, _ in watch.modes)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resuming_at_any_epoch_equals_never_stopping(tmp_path, stop_after):
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(2, ["all"], rate=0.5)})
    straight = Watch()
    tiny.trainer(tmp_path / "a", 4, [straight]).fit(tiny.module(plan), tiny.data())

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == stop_after:
                raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        tiny.trainer(tmp_path / "b", 4, [Stop()]).fit(tiny.module(plan), tiny.data())
    resumed = Watch()
    again = tiny.trainer(tmp_path / "b", 4, [resumed])
    again.fit(tiny.module(plan), tiny.data(), ckpt_path=tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    assert list(resumed.batches) == list(range(stop_after, 4))
    assert all(resumed.batches[epoch] == straight.batches[epoch] for epoch in resumed.batches)
    assert moved(straight.states[-1], resumed.states[-1]) == set()
    assert resumed.modes == straight.modes[-len(resumed.modes) :]
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())) for name in "ab"]
    for row in rows[0] + rows[1]:
        row.pop("seconds")
        assert int(row.pop("peak_mib")) > 0
    assert rows[0] == rows[1]


def test_checkpoints_have_plain_names_and_hold_tensors_and_plain_types(tmp_path):
    tiny.trainer(tmp_path, 3).fit(tiny.module(), tiny.data())
    folder = tmp_path / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    assert {"best.ckpt", "last.ckpt", "epoch_002.ckpt"} <= names
    assert len(names) <= 4
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"config": {"x": [1]}}


def test_every_epoch_sees_every_training_sample_once_in_another_order(tmp_path):
    watch = Watch()
    data = tiny.data()
    tiny.trainer(tmp_path, 2, [watch]).fit(tiny.module(), data)
    orders = [[i for batch in watch.batches[epoch] for i in batch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == data.rows("train").tolist()
    assert orders[0] != orders[1]


def test_both_kinds_of_labels_are_learned_with_some_unknown(tmp_path):
    for kind in ("multilabel", "multiclass"):
        task = tiny.module(kind=kind)
        trainer = tiny.trainer(tmp_path / kind, 6)
        trainer.fit(task, tiny.data(kind=kind, unknown=0.3))
        assert trainer.callback_metrics["val/auroc"] > 0.8


def test_a_loss_that_is_not_finite_stops_with_its_place_and_ways_out(tmp_path):
    task = tiny.module(lr=1e30)
    with pytest.raises(FinetuneError, match=r"loss is nan in epoch \d+, batch \d+. Lower optimizer.lr"):
        tiny.trainer(tmp_path, 3).fit(task, tiny.data())


def test_groups_cover_every_parameter_once_and_spare_norms_and_biases():
    network = tiny.module().network
    groups = parameter_groups(network.parts(), 0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    plain = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for name, parameter in network.named_parameters():
        assert (id(parameter) in plain) == (parameter.ndim == 1), name
    assert {g["part"] for g in groups} == set(network.parts())
