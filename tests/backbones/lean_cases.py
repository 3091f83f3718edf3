"""Small networks of every family, and what the lean tests measure of a training step."""

from unittest import mock

import torch
from torch import nn

from finetune.backbones import apply_memory, blocks, cifar, densenet, legacy_senet, preact, resnet
from finetune.backbones.densenet import DenseNet, PlainDenseLayer

deep = {"stem": resnet.stem_3x3, "shortcut": blocks.average_shortcut}
pair = (2, 1, 1, 1)
NARROW = (16, 32, 64, 128)  # for 64 to 512
wide = tuple(4 * channels for channels in NARROW)
NETS = {
    "basic": lambda: resnet.ResNet(blocks.BasicBlock, pair, num_classes=5),
    "basic_d": lambda: resnet.ResNet(blocks.BasicBlock, pair, num_classes=5, drop_path=0.3, **deep),
    "bottleneck": lambda: resnet.ResNet(blocks.Bottleneck, pair, num_classes=5),
    "bottleneck_d": lambda: resnet.ResNet(blocks.Bottleneck, pair, num_classes=5, output_stride=8, **deep),
    "next": lambda: resnet.ResNet(resnet.next_32x4d, pair, num_classes=5, drop_path=0.2),
    "se": lambda: resnet.ResNet(resnet.se_bottleneck, pair, num_classes=5),
    "legacy_basic": lambda: legacy_senet.LegacySENet(legacy_senet.SEBasicBlock, pair, num_classes=5, dropout=0.0),
    "legacy_bottleneck": lambda: legacy_senet.LegacySENet(legacy_senet.SEBottleneck, pair, num_classes=5, dropout=0.0),
    "preact": lambda: preact.PreActResNet(preact.PreActBottleneck, pair, wide, num_classes=5),
    "preact_d": lambda: preact.deep(preact.PreActBottleneck, pair, wide, num_classes=5, drop_path=0.3),
    "preact_cifar": lambda: cifar.CifarPreActResNet(preact.PreActBasic, 2, (16, 32, 64), shortcut="A", num_classes=5),
    "cifar_a": lambda: cifar.CifarResNet(2, num_classes=5),
    "cifar_b": lambda: cifar.CifarResNet(2, num_classes=5, shortcut="B"),
    "plain": lambda: cifar.PlainNet(2, num_classes=5),
    "dense": lambda: DenseNet(8, (2, 3, 2, 2), num_classes=5),
    "dense_blur": lambda: DenseNet(8, (2, 3, 2, 2), stem=densenet.stem_3x3_blur, num_classes=5),
    "dense_dilated": lambda: DenseNet(8, (2, 3, 2, 2), stem=densenet.stem_3x3, num_classes=5, output_stride=8),
    "dense_plain": lambda: DenseNet(12, (3, 2, 2), layer=PlainDenseLayer, compression=1.0, num_classes=5),
}
SIZE = 48  # px: odd maps on the way down


def make(case: str, memory: str = "standard", seed: int = 0) -> nn.Module:
    """The same weights for every `memory`; norms with scales and shifts of every kind, running statistics too."""
    torch.manual_seed(seed)
    with mock.patch.object(resnet, "CHANNELS", NARROW), mock.patch.object(legacy_senet, "CHANNELS", NARROW):
        net = NETS[case]().train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(-0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    return apply_memory(net, memory)


def batch(images: int = 3, size: int = SIZE, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(5, (images,), generator=generator)


def step(net: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything one training step gives: logits, gradients, buffers."""
    torch.manual_seed(2)  # drop path
    net.zero_grad()
    logits = net(x)
    nn.functional.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, target).backward()
    result = {"logits": logits.detach()}
    result |= {f"d{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return result | {name: value.clone() for name, value in net.named_buffers()}


def assert_same(result: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert result.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().item() if value.is_floating_point() else 0.0
        torch.testing.assert_close(
            result[name],
            value,
            rtol=0,
            atol=tolerance * max(scale, 1e-3),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def saved_bytes(net: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps of one forward pass, each storage once, besides input, parameters and buffers."""
    own = {t.untyped_storage()._cdata for t in [x, *net.parameters(), *net.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x)
    del y
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


def relative_error(result: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Of all gradients together, as a norm."""
    names = [name for name in wanted if name.startswith("d")]
    difference = sum((result[name].double() - wanted[name]).square().sum() for name in names)
    return (difference / sum(wanted[name].square().sum() for name in names)).sqrt().item()
