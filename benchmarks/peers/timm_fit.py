"""timm's own loader, optimizer, schedule and network in a loop as that of its train.py, which its package lacks."""

import common  # type: ignore[import-not-found]
import timm
import torch
import torchmetrics
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter


def main():
    given = common.arguments()
    options = {
        "input_size": (3, given.size, given.size), "batch_size": given.batch, "num_workers": given.workers,
        "use_prefetcher": False, "device": torch.device("cpu"), "persistent_workers": given.workers > 0,
    }  # fmt: skip
    train = create_loader(
        create_dataset("", root=f"{given.folders}/train"), is_training=True, scale=(0.85, 1.0), ratio=(0.95, 1.05),
        hflip=0.0, color_jitter=0.1, **options,
    )  # fmt: skip
    val = create_loader(create_dataset("", root=f"{given.folders}/val"), crop_pct=1.0, crop_mode="squash", **options)
    model = timm.create_model(given.backbone, pretrained=False, num_classes=2).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=given.lr, weight_decay=0.01)
    steps = len(train)
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=given.epochs, warmup_epochs=0, step_on_epochs=False, updates_per_epoch=steps
    )
    epochs, updates = common.Epochs(), 0
    for _ in range(given.epochs):
        epochs.begin()
        model.train()
        losses = AverageMeter()
        for images, labels in train:
            loss = torch.nn.functional.cross_entropy(
                model(images.contiguous(memory_format=torch.channels_last)), labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            schedule.step_update(updates)
            losses.update(loss.item(), len(images))
        model.eval()
        auroc = torchmetrics.AUROC("multiclass", num_classes=2)
        with torch.inference_mode():
            for images, labels in val:
                auroc.update(model(images.contiguous(memory_format=torch.channels_last)).softmax(1), labels)
        epochs.end(auroc.compute())
    epochs.write()


if __name__ == "__main__":
    main()
