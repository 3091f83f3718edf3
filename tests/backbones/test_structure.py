"""The structure of blocks: what they say is what they compute, and what training and folding read."""

import pytest
import torch
from torch import nn

from benchmarks.parity import uninitialised
from finetune import fold_batch_norm
from finetune.backbones import Backbone, apply_memory, build, list_models
from finetune.backbones.cifar import PlainBlock
from finetune.backbones.densenet import DenseLayer, PlainDenseLayer, Transition
from finetune.backbones.structure import Branches, ResidualBlock, Row, open_rows
from tests.backbones.lean_cases import NETS, assert_same, batch, make, step


class Times(nn.Module):
    """Multiplies by a number: a layer whose place in a sum is seen in the result."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


class Block(ResidualBlock):
    def __init__(self, shortcut: list[nn.Module], *, before: bool = False, end: bool = False):
        super().__init__()
        self.shortcut = nn.ModuleList(shortcut)
        self.first = nn.ModuleList([Times(10.0)] if before else [])
        self.main = nn.ModuleList([Times(2.0), Times(-3.0)])
        self.end = nn.ReLU() if end else None

    def branches(self) -> Branches:
        return Branches(list(self.main), list(self.shortcut), list(self.first), self.end)


@pytest.mark.parametrize(
    ("block", "answer"),
    [
        (Block([]), -6 + 1),
        (Block([Times(4.0)]), -6 + 4),
        (Block([Times(4.0)], end=True), 0),
        (Block([Times(7.0)], end=True), 1),
        (Block([Times(7.0), Times(2.0)], before=True), 10 * (-6 + 14)),  # both read before(x)
        (Block([], before=True), -60 + 1),  # an identity reads x
        (Block([nn.Identity()], before=True), -60 + 1),
        (Block([nn.Sequential(nn.Identity())], before=True), -60 + 1),
    ],
)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_residual_block_computes_what_its_branches_say(block, answer, in_place):
    block.adds_in_place = in_place
    x = torch.ones(1, 1, 2, 2)
    assert block(x).tolist() == torch.full((1, 1, 2, 2), float(answer)).tolist()
    assert (x == 1).all()


def test_a_row_computes_its_modules_in_order():
    block, x = PlainBlock(3, 4).eval(), torch.randn(1, 3, 5, 5)
    wanted = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()
    assert torch.equal(block(x), wanted)


def test_a_transition_may_pool_first():
    transition = Transition(4, 2, nn.AvgPool2d(2)).double().eval()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    pooled_first = x
    for module in transition.cheapest_order():
        pooled_first = module(pooled_first)
    torch.testing.assert_close(pooled_first, transition(x), rtol=1e-12, atol=1e-12)
    assert set(transition.cheapest_order()) == set(transition)


def test_rows_are_opened_all_the_way_down():
    transition, block, closed = Transition(4, 2, nn.Identity()), DenseLayer(4, 2), nn.Sequential(nn.ReLU())
    opened = open_rows(
        [nn.Sequential(transition, nn.Identity()), block, closed], closed=lambda module: module is closed
    )
    # a dense layer is no sequence: it concatenates first
    assert opened == [transition.norm, transition.relu, transition.conv, block, closed]


def test_the_parts_of_a_dense_layer():
    layer, plain = DenseLayer(8, 4), PlainDenseLayer(8, 4)
    assert layer.parts() == (layer.norm1, layer.relu1, layer.conv1, [layer.norm2, layer.relu2, layer.conv2])
    assert plain.parts() == (plain.norm1, plain.relu1, None, [plain.conv1])
    assert layer.growth == plain.growth == 4


@pytest.mark.parametrize("name", list_models())
def test_rows_hold_every_module_once(name):
    """A ReLU used twice would be replaced in both places when it is folded in one."""
    with torch.device("meta"), uninitialised():
        net = build(name)
    ran = [module for row in net.rows() for module in open_rows(row)]
    assert len(set(ran)) == len(ran)
    held = [module for part in net.parts().values() for module in open_rows(part)]
    assert ran == held
    inner = [module for module in ran for module in module.modules()]
    assert len(set(inner)) == len(inner)


class Gated(ResidualBlock):
    """A block of two paths that no other file knows of: 1x1, norm, ReLU, 3x3; the shortcut is a norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = channels
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(channels, channels, 1, bias=False))
        self.act2 = nn.ReLU(inplace=True)

    def branches(self) -> Branches:
        return Branches([self.conv1, self.norm1, self.act1, self.conv2], [self.pool], end=self.act2)


class Stem(Row):
    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)


class Small(Backbone):
    """Stem and blocks of this file; `parts` is all that it says of its order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(3)
        self.layer1 = nn.Sequential(Gated(8), Gated(8))
        self.num_features = 8
        self.fc = self.make_classifier(5)

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"stem": [self.stem], "stage1": [self.layer1]}


class Overriding(Small):
    def forward_stage(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.layer1(x) * 2


@pytest.mark.parametrize("memory", ["lean", "minimal"])
def test_a_block_of_ones_own_is_trained_lean(memory):
    """And without a warning: those are errors here."""
    torch.manual_seed(0)
    net, (x, target) = Small().double(), batch(size=12)
    wanted = step(net, x, target)
    torch.manual_seed(0)
    assert_same(step(apply_memory(Small().double(), memory), x, target), wanted)


@pytest.mark.parametrize("kind", [Small, Overriding])
@torch.no_grad()
def test_a_block_of_ones_own_is_folded_where_the_rows_say_it_all(kind):
    net, (x, _) = kind().double().train(), batch(size=12)
    net(x)
    folded = fold_batch_norm(net.eval())
    torch.testing.assert_close(folded(x), net(x), rtol=1e-10, atol=1e-10)
    norms = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ([] if kind is Small else ["layer1.0.norm1", "layer1.1.norm1"])
    assert len(net.rows()) == (3 if kind is Small else 2)


@pytest.mark.parametrize("case", NETS)
def test_a_network_compiles_as_one_graph(case):
    """Blocks make their rows anew in every forward; the tracer of torch.compile follows them."""
    net, (x, _) = make(case).eval(), batch(2, 32, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))
