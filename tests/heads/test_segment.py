"""Heads that give logits for each pixel: torchvision's numbers, every family, sizes, plans, memory, what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from finetune.backbones.folding import fold_batch_norm
from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError
from finetune.extend import register_head
from finetune.heads import FCN, HEADS, FeatureInfo, Pyramid, SegmentHead, SemanticFPN, UNet, check_gives, gives
from finetune.network import Network, NetworkSpec, feature_info
from finetune.training.parts import check_cover, set_gradients, set_modes
from tests.backbones import lean_cases

SEGMENT = [name for name in HEADS if gives(HEADS[name]) == "regions"]
OF_TORCHVISION = {"deeplabv3": segmentation.deeplabv3_resnet50, "fcn": segmentation.fcn_resnet50}


def joined(case: str, head: str, memory: str = "standard", *, neck: bool = False) -> Network:
    """A small network of that family with that head, for 3 regions."""
    backbone = lean_cases.make(case, memory)
    backbone.reset_classifier(0)
    infos = feature_info(backbone)
    made_neck = Pyramid(infos, channels=8) if neck else None
    read = infos if made_neck is None else made_neck.feature_info
    return Network(backbone, HEADS[head](read, 3, channels=4), made_neck)


def cases_of(head: str) -> list[str]:
    """Of every kind of maps one family; those whose last map a head refuses are left out."""
    cases = ["basic", "bottleneck_d", "preact", "dense", "dense_dilated", "cifar_a", "preact_cifar", "dense_plain"]
    return [case for case in cases if head != "deeplabv3" or case not in ("basic", "preact", "dense")]


@pytest.mark.parametrize("head", OF_TORCHVISION)
def test_logits_and_gradients_are_those_of_torchvision(head):
    torch.manual_seed(0)
    theirs = OF_TORCHVISION[head](weights=None, weights_backbone=None, num_classes=4).double()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    spec = NetworkSpec("resnet50", 4, head=head, backbone_options={"output_stride": 8}, head_options={"dropout": 0.0})
    ours = spec.build().double()
    ours.load_state_dict(
        {name.replace("classifier.", "head.layers."): value for name, value in theirs.state_dict().items()}
    )
    images = torch.randn(2, 3, 33, 48, dtype=torch.float64)  # px: 33 is no multiple of any stride
    with torch.no_grad():
        logits = ours.eval()(images)
        assert logits.shape == (2, 4, 33, 48)
        torch.testing.assert_close(logits, theirs.eval()(images)["out"], rtol=0, atol=1e-5)
    for net in (ours.train(), theirs.train()):
        out = net(images)
        (out if net is ours else out["out"]).square().mean().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize("head", SEGMENT)
@pytest.mark.parametrize("neck", [False, True])
@torch.no_grad()
def test_every_family_gives_logits_of_the_size_of_the_image(head, neck):
    for case in cases_of(head):
        network = joined(case, head, neck=neck).eval()
        for size in ((64, 96), (50, 37)):
            images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
            logits = network(images)
            assert logits.shape == (2, 3, *size), case
            assert logits.isfinite().all()
            for part in network.parts():
                between = network.run(images, stop=part)
                assert torch.equal(network.run(between, start=part, size=size), logits), (case, part)
                if size == (64, 96):  # multiples of every stride: the maps alone say the size
                    assert torch.equal(network.run(between, start=part), logits)
            assert network.features(images).shape == (2, network.head.classifier.in_channels)
        folded = fold_batch_norm(network.double())
        torch.testing.assert_close(folded(images.double()), network(images.double()))


@pytest.mark.parametrize("head", SEGMENT)
@pytest.mark.parametrize("neck", [False, True])
def test_a_step_with_little_memory_is_that_of_standard_training(head, neck):
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    target = torch.randint(3, (2, 48, 48))
    steps = []
    for memory in ("standard", "lean", "minimal"):
        network = joined("bottleneck_d", head, memory, neck=neck).double()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # it draws in the order in which a map is stored, which memory decides
        assert network.head.run is network.backbone.run
        assert network.backbone.memory == memory
        logits = network(images)
        F.cross_entropy(logits, target).backward()
        step = {"logits": logits.detach(), **{name: value.clone() for name, value in network.named_buffers()}}
        steps.append(step | {f"d{name}": p.grad for name, p in network.named_parameters() if p.grad is not None})
    for step in steps[1:]:
        lean_cases.assert_same(step, steps[0])


class TorchvisionPyramid(nn.Module):
    """torchvision's ResNet-50 and pyramid under the head of this project."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
        )
        self.head = SemanticFPN([FeatureInfo(256, 4 * 2**n) for n in range(4)], 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        *maps, _ = self.backbone(images).values()
        return self.head(maps, images.shape[-2:])


@pytest.mark.parametrize(
    ("reference", "spec"),
    [
        (TorchvisionPyramid, NetworkSpec("resnet50", 4, head="fpn", neck="pyramid")),
        (
            lambda: segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4),
            NetworkSpec("resnet50", 4, head="deeplabv3", backbone_options={"output_stride": 8}),
        ),
    ],
)
def test_bytes_that_training_keeps(reference, spec):
    """0.55 and 0.62 times those of torchvision with memory=lean, 0.29 and 0.21 with minimal."""
    images = torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    kept = {"torchvision": lean_cases.saved_bytes(reference().train(), images)}
    for memory in ("standard", "lean", "minimal"):
        options = {**spec.backbone_options, "memory": memory}
        network = NetworkSpec(**{**spec.to_dict(), "backbone_options": options}).build().train()
        kept[memory] = lean_cases.saved_bytes(network, images)
    assert kept["standard"] <= 1.01 * kept["torchvision"]
    assert kept["lean"] <= 0.7 * kept["torchvision"]
    assert kept["minimal"] <= 0.35 * kept["torchvision"]


@pytest.mark.parametrize("head", SEGMENT)
@pytest.mark.parametrize("plan", ["linear_probe", "head_then_full", "gradual"])
def test_plans_train_all_that_is_new(head, plan):
    network = joined("cifar_a", head, neck=head == "fpn")
    parts, new = network.parts(), network.new_parts
    assert new == (("neck", "head") if head == "fpn" else ("head",))
    check_cover(network, parts)
    made = build.plan(parse(compose.plain(compose.compose([f"finetuning={plan}"]))))
    made.check(list(parts), None, new)
    states = made.at(0, list(parts), new)
    set_gradients(parts, states)
    network.train()
    set_modes(parts, states)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.randint(3, (4, 32, 32))).backward()
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    everything = {name for name in before if name.split(".")[0] in new}
    if plan == "linear_probe":
        assert moved == everything
    assert moved >= everything


def test_semantic_fpn_by_hand():
    """With weights of 0 a convolution gives 0, its group norm the bias: 2 and 3, whose sum the classifier reads."""
    head = SemanticFPN([FeatureInfo(1, 4), FeatureInfo(1, 8)], 1, channels=1)
    with torch.no_grad():
        for branch, bias in zip(head.branches, (2.0, 3.0), strict=True):
            (row,) = branch
            row[0].weight.zero_()
            row[1].bias.fill_(bias)
        head.classifier.weight.fill_(10.0)
        head.classifier.bias.fill_(1.0)
        logits = head([torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2)])
    assert torch.equal(logits, torch.full((1, 1, 16, 16), 51.0))  # 10 * (2 + 3) + 1
    deep = SemanticFPN([FeatureInfo(8, 4 * 2**n) for n in range(4)], 2, channels=16)
    assert [len(branch) for branch in deep.branches] == [1, 1, 2, 3]
    assert deep.branches[3][0][1].num_groups == 16


def test_the_decoder_of_unet_has_a_level_for_each_stride():
    head = UNet([FeatureInfo(c, s) for c, s in ((10, 4), (20, 8), (30, 16), (40, 32))], 2)
    reads = [block[0].in_channels for block in head.blocks]
    gives_channels = [block[3].out_channels for block in head.blocks]
    assert head.strides == [16, 8, 4, 2, 1]
    assert gives_channels == [256, 128, 64, 32, 16]
    assert reads == [40 + 30, 256 + 20, 128 + 10, 64, 32]
    same = UNet([FeatureInfo(8, 1), FeatureInfo(8, 1)], 2)  # no map is enlarged
    assert same.strides == [1]


def test_atrous_rates_are_the_papers_for_the_stride():
    for stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        head = HEADS["deeplabv3"]([FeatureInfo(8, 4), FeatureInfo(8, stride)], 2)
        assert [branch[0].dilation[0] for branch in list(head.layers[0].convs)[1:-1]] == rates
    head = HEADS["deeplabv3"]([FeatureInfo(8, 8)], 2, rates=[2, 3])
    assert [branch[0].dilation[0] for branch in list(head.layers[0].convs)[1:-1]] == [2, 3]


@pytest.mark.parametrize(
    ("head", "stride", "options", "message"),
    [
        (
            "deeplabv3",
            32,
            {},
            "head=deeplabv3 reads a last map of stride 16 or less; here it is 32. Set backbone.output",
        ),
        ("deeplabv3", 16, {"rates": [0]}, "head.rates=0 must be a whole number of 1 or more"),
        ("deeplabv3", 16, {"channels": 0}, "head.channels=0 must be a whole number of 1 or more"),
        ("deeplabv3", 16, {"dropout": 1}, "head.dropout=1 must be at least 0 and below 1"),
        ("fcn", 32, {"channels": 0}, "head.channels=0 must be a whole number of 1 or more"),
        ("fcn", 32, {"dropout": -0.5}, "head.dropout=-0.5 must be at least 0 and below 1"),
        ("fpn", 32, {"channels": "a"}, "head.channels='a' must be a whole number of 1 or more"),
        ("unet", 32, {"channels": 0}, "head.channels=0 must be a whole number of 1 or more"),
    ],
)
def test_what_does_not_fit_is_one_line(head, stride, options, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        HEADS[head]([FeatureInfo(8, 4), FeatureInfo(8, stride)], 2, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_options_of_the_command_line_that_no_head_takes_are_one_line():
    for options, message in (
        ({"rates": 6}, r"head=deeplabv3 cannot be built with the options {'rates': 6}"),
        ({"pool": "avg"}, r"head=deeplabv3 cannot be built with the options {'pool': 'avg'}"),
    ):
        spec = NetworkSpec("resnet18", 2, head="deeplabv3", backbone_options={"output_stride": 8}, head_options=options)
        with pytest.raises(FinetuneError, match=message):
            spec.build()


@pytest.mark.parametrize("head", SEGMENT)
def test_a_head_of_regions_does_not_go_with_classes(head):
    check_gives(head, "regions")
    check_gives("classify", "classes")
    with pytest.raises(FinetuneError, match=f"head={head} gives logits for each pixel, and the task learns classes.*"):
        check_gives(head, "classes")
    with pytest.raises(FinetuneError, match=r"classify gives logits for the whole image, .*Choose deeplabv3, fcn, fpn"):
        check_gives("classify", "regions")
    with pytest.raises(FinetuneError, match=f"head={head} gives logits for each pixel.* Choose classify"):
        build.check(compose.plain(compose.compose([f"head={head}", "backbone=resnet18", "backbone.weights=none"])))


def test_one_image_in_training_is_refused_where_its_mean_is_normalised():
    network = joined("cifar_a", "deeplabv3").train()
    with pytest.raises(FinetuneError, match=r"learns from two images or more at a time.* Raise data.batch_size"):
        network(torch.randn(1, 3, 32, 32))
    assert network.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_a_head_of_regions_of_your_own_is_checked():
    class Small(FCN):
        def __init__(self, features, num_classes):
            super().__init__(features, num_classes, channels=4)

    class Coarse(Small):
        def forward(self, maps, size=None):
            return self.classifier(self.decode(maps, size))

    class Undecided(Small):
        gives = "pixels"

    before = dict(HEADS)
    try:
        register_head("small", Small)
        assert HEADS["small"] is Small
        with pytest.raises(
            FinetuneError, match=r"forward\(maps\) must be a tensor \(2, 3, 128, 128\), not \(2, 3, 4, 4\)"
        ):
            register_head("coarse", Coarse)
        with pytest.raises(FinetuneError, match=r"Undecided.gives=pixels is not known. Choose from classes, regions"):
            register_head("undecided", Undecided)
        with pytest.raises(FinetuneError, match=r"must have gives = 'regions', as what it makes"):
            register_head("made", _takes_maps(lambda features, classes: Small(features, classes)))
    finally:
        HEADS.clear()
        HEADS.update(before)


def _takes_maps(make):
    make.takes = "maps"
    return make


@pytest.mark.parametrize("head", SEGMENT)
def test_a_network_of_regions_is_exported_and_compiled(head):
    network = joined("cifar_a", head, neck=True).eval()
    images = torch.randn(2, 3, 30, 30)
    with torch.no_grad():
        wanted = network(images)
        assert torch.equal(torch.export.export(network, (images,)).module()(images), wanted)
        assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(images), wanted)
    assert isinstance(network.head, SegmentHead)


@pytest.mark.parametrize("head", SEGMENT)
def test_the_file_of_each_head_builds_it(head):
    words = [f"head={head}", "neck=pyramid", "backbone=resnet18", "backbone.output_stride=16"]
    settings = parse(compose.plain(compose.compose(words)))
    with torch.device("meta"):
        network = build.network_spec(settings, num_classes=3).build()
        assert network(torch.empty(2, 3, 50, 50)).shape == (2, 3, 50, 50)
