"""The pyramid neck: torchvision's numbers for its weights, the maps of every family, and what is refused."""

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from finetune.errors import FinetuneError
from finetune.heads import FeatureInfo, Pyramid
from finetune.network import NetworkSpec, feature_info
from tests.backbones import lean_cases

FEATURES = [FeatureInfo(6, 4), FeatureInfo(10, 8), FeatureInfo(14, 16)]
EXTRAS = {"none": lambda: None, "pool": LastLevelMaxPool, "p6p7": lambda: LastLevelP6P7(8, 8)}


def maps_of(features: list[FeatureInfo], size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = [-(-size // info.reduction) for info in features]
    return [torch.randn(2, i.num_chs, n, n, generator=generator) for i, n in zip(features, sides, strict=True)]


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("size", [64, 52])  # px: 52 gives odd maps
def test_maps_and_gradients_are_those_of_torchvision(extra, size):
    torch.manual_seed(0)
    wanted = FeaturePyramidNetwork([i.num_chs for i in FEATURES], 8, EXTRAS[extra]())
    neck = Pyramid(FEATURES, channels=8, extra=extra)
    neck.load_state_dict(wanted.state_dict())  # the same names
    maps = maps_of(FEATURES, size)
    theirs = wanted(dict(zip("012", maps, strict=True)))
    ours = neck(maps)
    assert list(theirs) == neck.map_names
    for x, y in zip(ours, theirs.values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
    sum(x.square().sum() for x in ours).backward()
    sum(y.square().sum() for y in theirs.values()).backward()
    for (name, p), q in zip(neck.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    sides = [x.shape[-1] for x in ours]
    assert sides == [-(-size // info.reduction) for info in neck.feature_info]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_same_seed_gives_the_initial_weights_of_torchvision(extra):
    torch.manual_seed(0)
    top = EXTRAS[extra]() if extra != "p6p7" else None  # torchvision draws these before the pyramid
    wanted = FeaturePyramidNetwork([6, 10, 14], 8, top).state_dict()
    torch.manual_seed(0)
    state = Pyramid(FEATURES, channels=8, extra=extra).state_dict()
    assert wanted.keys() == {name for name in state if "extra_blocks" not in name}
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    last = [state[name] for name in state if name.startswith("extra_blocks") and name.endswith("weight")]
    assert all(value.abs().max() <= (3 / (9 * 8)) ** 0.5 for value in last)  # uniform, of variance 1 / inputs


def test_by_hand():
    """One channel, weights of 1 in the middle: the fine map gets the coarse one, each place four times."""
    neck = Pyramid([FeatureInfo(1, 1), FeatureInfo(1, 2)], channels=1, extra="pool")
    with torch.no_grad():
        for name, value in neck.named_parameters():
            value.zero_()
            if name.endswith("weight"):
                value[..., value.shape[-2] // 2, value.shape[-1] // 2] = 1.0
        fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([[[[100.0, 200.0], [300.0, 400.0]]]])
        made, same, pool = neck([fine, coarse])
    assert made[0, 0].tolist() == [
        [100, 101, 202, 203],
        [104, 105, 206, 207],
        [308, 309, 410, 411],
        [312, 313, 414, 415],
    ]
    assert torch.equal(same, coarse)
    assert pool.tolist() == [[[[100.0]]]]


@pytest.mark.parametrize("case", lean_cases.NETS)
def test_every_family_has_a_pyramid(case):
    """Also with `output_stride`, where several maps are of one size, and for images of odd maps."""
    backbone = lean_cases.make(case)
    infos = feature_info(backbone)
    neck = Pyramid(infos, channels=4, extra="p6p7")
    *stages, last = backbone.forward_stages(torch.randn(2, 3, 96, 64))
    maps = [*stages, backbone.forward_tail(last)]
    before = [x.clone() for x in maps]
    made = neck(maps)
    assert [x.shape[:2] for x in made] == [(2, 4)] * (len(infos) + 2)
    assert [x.shape[2:] for x in made[:-2]] == [x.shape[2:] for x in maps]
    assert [x.shape[2:] for x in made] == [(-(-96 // i.reduction), -(-64 // i.reduction)) for i in neck.feature_info]
    assert all(torch.equal(x, y) for x, y in zip(maps, before, strict=True))


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_50", "seresnet50", "densenet121", "legacy_seresnet50"])
def test_maps_of_one_size_with_output_stride(name):
    with torch.device("meta"):
        network = NetworkSpec(name, 3, neck="pyramid", backbone_options={"output_stride": 8}).build()
        maps = network.run(torch.empty(2, 3, 64, 64), stop="neck")
        made = network.neck(maps)
    assert [(x.shape[1], x.shape[2]) for x in made] == [(256, 16), (256, 8), (256, 8), (256, 8)]
    assert network.new_parts == ("neck", "head")


def test_fine_maps_may_be_left_out():
    torch.manual_seed(0)
    neck = Pyramid(FEATURES, channels=8, extra="p6p7", finest=8)
    assert [i.reduction for i in neck.feature_info] == [8, 16, 32, 64]
    assert neck.map_names == ["0", "1", "p6", "p7"]
    wanted = FeaturePyramidNetwork([10, 14], 8, LastLevelP6P7(8, 8))
    wanted.load_state_dict(neck.state_dict())
    maps = maps_of(FEATURES, 64)
    theirs = wanted(dict(zip("01", maps[1:], strict=True)))
    for x, y in zip(neck(maps), theirs.values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES, {"channels": 0}, "neck.channels=0 must be a whole number of 1 or more"),
        (FEATURES, {"channels": 2.5}, "neck.channels=2.5 must be a whole number of 1 or more"),
        (FEATURES, {"channels": True}, "neck.channels=True must be a whole number"),
        (FEATURES, {"extra": "p6"}, "neck.extra=p6 is not known. Did you mean p6p7"),
        (FEATURES, {"finest": 5}, "neck.finest=5 is not known. Choose from 4, 8, 16"),
        (FEATURES, {"finest": 16}, "neck=pyramid needs two maps or more, and reads 1 here"),
        (
            FEATURES[:1],
            {},
            "neck=pyramid needs two maps or more, and reads 1 here. Choose a backbone of several stages",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(features, options, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        Pyramid(features, **options)
    assert len(str(caught.value).splitlines()) == 1
