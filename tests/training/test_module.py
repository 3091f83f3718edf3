"""Real training of a tiny network: frozen parts stay unchanged, a resumed training gives the same."""

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


class Recorder(L.Callback):
    """Records the network's state at the start of each epoch, and modes, batches and rates."""

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


def changed_tensors(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_linear_probe_changes_only_the_head(tmp_path):
    recorder = Recorder()
    module = tiny.module(Plan({"head": Phase(0, ["head"])}))
    tiny.trainer(tmp_path, 2, [recorder]).fit(module, tiny.data())
    assert changed_tensors(recorder.states[0], recorder.states[-1]) == {
        "head.fc.weight",
        "head.fc.bias",
    }  # running statistics too
    assert not any(any(norms.values()) for _, norms, _ in recorder.modes)
    assert not any(backbone_trains for *_, backbone_trains in recorder.modes)


@pytest.mark.parametrize(
    ("neck", "head"), [("narrow", "classify"), ("top_down", "every_map"), ("top_down", "classify")]
)
@pytest.mark.parametrize("name", ["linear_probe", "head_then_full", "gradual"])
def test_a_plan_that_freezes_the_backbone_trains_the_new_parts(tmp_path, own_parts, neck, head, name):
    recorder = Recorder()
    config = compose.plain(compose.compose([f"finetuning={name}", "finetuning.head_rate=2"]))
    module = tiny.module(build.plan(parse(config)))
    network = NetworkSpec("resnet20_cifar", 2, 1, head, neck=neck).build()
    assert network.new_parts == ("neck", "head")
    assert list(network.parts())[-3:] == ["stage3", "neck", "head"]
    module = FineTuning(network, module.objective, module.optimizer, module.schedule, module.plan)
    tiny.trainer(tmp_path, 1, [recorder]).fit(module, tiny.data())
    new = {key for key in recorder.states[0] if key.startswith(("neck.", "head."))}
    if (neck, head) == ("top_down", "classify"):  # a head on the last map alone reads nothing of the finer ones
        new -= {f"neck.lateral.{number}.{kind}" for number in (0, 1) for kind in ("weight", "bias")}
    assert changed_tensors(recorder.states[0], recorder.states[-1]) == new
    assert all(rates["neck"] == rates["head"] > rates["stage3"] == 0 for rates in recorder.rates)


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
    recorder = Recorder()
    tiny.trainer(tmp_path, 1, [recorder]).fit(tiny.module(Plan(norms="frozen")), tiny.data())
    changed = changed_tensors(recorder.states[0], recorder.states[-1])
    assert "backbone.conv1.weight" in changed
    assert not {name for name in changed if "bn" in name}
    recorder = Recorder()
    tiny.trainer(tmp_path, 1, [recorder]).fit(tiny.module(Plan(norms="stats")), tiny.data())
    changed = changed_tensors(recorder.states[0], recorder.states[-1])
    assert "backbone.bn1.running_mean" in changed
    assert not {"backbone.bn1.weight", "backbone.bn1.bias"} & changed
    recorder = Recorder()
    tiny.trainer(tmp_path, 1, [recorder]).fit(tiny.module(Plan(norms="affine")), tiny.data())
    changed = changed_tensors(recorder.states[0], recorder.states[-1])
    assert "backbone.bn1.weight" in changed
    assert "backbone.bn1.running_mean" not in changed


def test_head_then_full_unfreezes_at_its_epoch_also_with_one_cycle(tmp_path):
    recorder = Recorder()
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(2, ["all"], rate=0.5)})
    tiny.trainer(tmp_path, 4, [recorder]).fit(tiny.module(plan, OneCycle()), tiny.data())
    start, epoch_1, epoch_2, epoch_3, _ = recorder.states
    assert changed_tensors(start, epoch_2) == {"head.fc.weight", "head.fc.bias"}
    assert "backbone.conv1.weight" in changed_tensors(epoch_2, epoch_3)
    assert epoch_1["head.fc.weight"].ne(epoch_2["head.fc.weight"]).any()
    steps = len(recorder.rates) // 4
    assert all(rates["stem"] == 0 and rates["head"] > 0 for rates in recorder.rates[: 2 * steps])
    assert all(rates["stem"] == rates["head"] > 0 for rates in recorder.rates[2 * steps :])
    assert all(list(norms.values()) == [epoch >= 2] * len(norms) for epoch, norms, _ in recorder.modes)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resuming_at_any_epoch_equals_never_stopping(tmp_path, stop_after):
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(2, ["all"], rate=0.5)})
    unstopped = Recorder()
    tiny.trainer(tmp_path / "a", 4, [unstopped]).fit(tiny.module(plan), tiny.data())

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == stop_after:
                raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        tiny.trainer(tmp_path / "b", 4, [Stop()]).fit(tiny.module(plan), tiny.data())
    resumed = Recorder()
    trainer = tiny.trainer(tmp_path / "b", 4, [resumed])
    trainer.fit(tiny.module(plan), tiny.data(), ckpt_path=tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    assert list(resumed.batches) == list(range(stop_after, 4))
    assert all(resumed.batches[epoch] == unstopped.batches[epoch] for epoch in resumed.batches)
    assert changed_tensors(unstopped.states[-1], resumed.states[-1]) == set()
    assert resumed.modes == unstopped.modes[-len(resumed.modes) :]
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
    recorder = Recorder()
    data = tiny.data()
    tiny.trainer(tmp_path, 2, [recorder]).fit(tiny.module(), data)
    orders = [[i for batch in recorder.batches[epoch] for i in batch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == data.rows("train").tolist()
    assert orders[0] != orders[1]


def test_both_kinds_of_labels_are_learned_with_some_unknown(tmp_path):
    for kind in ("multilabel", "multiclass"):
        module = tiny.module(kind=kind)
        trainer = tiny.trainer(tmp_path / kind, 6)
        trainer.fit(module, tiny.data(kind=kind, unknown=0.3))
        assert trainer.callback_metrics["val/auroc"] > 0.8


def test_a_loss_that_is_not_finite_stops_with_epoch_batch_and_ways_out(tmp_path):
    module = tiny.module(lr=1e30)
    with pytest.raises(
        FinetuneError, match=r"loss is nan in epoch \d+, batch \d+: .*png and 4 more. Lower optimizer.lr"
    ):
        tiny.trainer(tmp_path, 3).fit(module, tiny.data())


def test_groups_cover_every_parameter_once_without_decay_of_norms_and_biases():
    network = tiny.module().network
    groups = parameter_groups(network.parts(), 0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    plain = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for name, parameter in network.named_parameters():
        assert (id(parameter) in plain) == (parameter.ndim == 1), name
    assert {g["part"] for g in groups} == set(network.parts())
