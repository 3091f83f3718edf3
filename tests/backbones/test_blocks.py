"""Blocks and small layers, against answers worked out by hand."""

import pytest
import torch
from timm.layers import AvgPool2dSame, BlurPool2d
from torch import nn

from finetune.backbones.blocks import BasicBlock, BlurPool, Bottleneck, DropPath, SamePool, SqueezeExcite
from finetune.backbones.cifar import PadShortcut
from finetune.backbones.densenet import DenseBlock, DenseLayer, PlainDenseLayer, Transition
from finetune.backbones.preact import PreActBasic, PreActBottleneck


@pytest.mark.parametrize("block", [BasicBlock(16, 16), Bottleneck(16, 4)])
def test_a_block_is_the_identity_when_its_last_norm_is_zero(block):
    block.zero_init_last()
    x = torch.rand(2, 16, 4, 4)  # not negative: the last relu keeps it
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("block", [PreActBasic(16, 16), PreActBottleneck(16, 16)])
def test_a_pre_activation_block_keeps_negative_values_on_its_way_past(block):
    block.zero_init_last()
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_drop_path_keeps_or_drops_whole_images_and_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 1, 2, 2))
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (out.flatten(1).std(dim=1) == 0).all()
    assert abs(out.mean().item() - 1) < 0.05
    assert drop.eval()(out) is out


def test_squeeze_excite_gates_by_the_mean_of_a_channel():
    gate = SqueezeExcite(8)  # squeezed to 8: never fewer
    assert gate.fc1.out_channels == 8
    with torch.no_grad():
        for conv in (gate.fc1, gate.fc2):
            conv.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
            conv.bias.zero_()
    x = torch.zeros(1, 8, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean 3
    x[0, 1] = -4.0  # relu makes it 0, whose sigmoid is a half
    out = gate(x)
    torch.testing.assert_close(out[0, 0], x[0, 0] * torch.tensor(3.0).sigmoid())
    torch.testing.assert_close(out[0, 1], x[0, 1] / 2)


@pytest.mark.parametrize(("channels", "squeezed"), [(64, 8), (200, 16), (256, 16), (2048, 128)])
def test_squeezed_channels_are_a_multiple_of_eight(channels, squeezed):
    assert SqueezeExcite(channels).fc1.out_channels == squeezed


def test_blur_pool_spreads_a_point_by_the_binomial_weights():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 16.0  # outputs are centred at 0 and 2: a distance of one on each axis, twice a quarter
    assert BlurPool(1)(x)[0, 0].tolist() == [[4.0, 2.0], [2.0, 1.0]]  # the border mirrors the point once per axis


def test_blur_pool_and_same_pool_are_timms():
    x = torch.randn(2, 3, 7, 6)
    assert torch.equal(BlurPool(3)(x), BlurPool2d(3)(x))
    assert torch.equal(SamePool()(x), AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)(x))


def test_the_padding_shortcut_takes_every_second_pixel_and_puts_zeros_around_the_channels():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 4, 2, 1)(x)
    assert out[0, 0].eq(0).all()
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert out[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert out[0, 3].eq(0).all()


def test_a_dense_block_appends_and_keeps_what_it_read():
    block = DenseBlock(3, 4, 2, layer=DenseLayer)
    x = torch.randn(2, 4, 5, 5)
    out = block(x)
    assert out.shape == (2, 4 + 3 * 2, 5, 5)
    assert torch.equal(out[:, :4], x)
    torch.testing.assert_close(out[:, 4:6], block["denselayer1"]([x]))
    assert block["denselayer3"].norm1.num_features == 8


def test_a_dilated_dense_layer_reaches_two_pixels_far():
    layer = PlainDenseLayer(1, 1, dilation=2).eval()  # fresh statistics: the norm divides by sqrt(1 + eps)
    with torch.no_grad():
        layer.conv1.weight.copy_(torch.arange(1.0, 10).view(1, 1, 3, 3))
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = (1 + layer.norm1.eps) ** 0.5
    wanted = torch.zeros(5, 5)
    wanted[::2, ::2] = torch.arange(9.0, 0, -1).view(3, 3)  # a point comes out as the flipped kernel, spread by two
    torch.testing.assert_close(layer([x])[0, 0], wanted)


def test_a_transition_averages_what_its_convolution_gives():
    transition = Transition(1, 1, nn.AvgPool2d(2)).eval()
    with torch.no_grad():
        transition.conv.weight.fill_(2.0)
    x = torch.tensor([[1.0, 2.0], [3.0, -6.0]]).view(1, 1, 2, 2)  # relu makes -6 a 0: mean 1.5, times 2
    torch.testing.assert_close(transition(x).flatten(), torch.tensor([3.0]), atol=1e-4, rtol=0)
