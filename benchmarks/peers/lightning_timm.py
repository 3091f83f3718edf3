"""A LightningModule around a timm network, torchvision's transforms on files, as a careful user writes it."""

import common  # type: ignore[import-not-found]
import lightning as L
import timm
import torch
import torchmetrics
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Files(Dataset):
    def __init__(self, table, classes, transform):
        self.paths, self.transform = table["path"].tolist(), transform
        self.labels = [classes.index(label) for label in table["label"]]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB")), self.labels[i]


class Classifier(L.LightningModule):
    def __init__(self, given, steps, epochs):
        super().__init__()
        self.net = timm.create_model(given.backbone, pretrained=False, num_classes=2)
        self.auroc = torchmetrics.AUROC("multiclass", num_classes=2)
        self.given, self.steps, self.epochs = given, steps, epochs

    def training_step(self, batch, number):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, number):
        logits = self.net(batch[0])
        self.log("val/loss", torch.nn.functional.cross_entropy(logits, batch[1]))
        self.auroc.update(logits.softmax(1), batch[1])

    def on_train_epoch_start(self):
        self.epochs.begin()

    def on_validation_epoch_end(self):
        self.value = self.auroc.compute()
        self.log("val/auroc", self.value)
        self.auroc.reset()

    def on_train_epoch_end(self):
        self.epochs.end(self.value)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.given.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    given = common.arguments()
    table = common.read_table(given)
    classes = sorted(set(table["label"]))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    resize = v2.Resize((given.size, given.size))
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    augment = [v2.RandomAffine(7, (0.04, 0.04), (0.92, 1.08)), v2.ColorJitter(0.1, 0.1)]
    train = Files(table[table["split"] == "train"], classes, v2.Compose([resize, *augment, *end]))
    val = Files(table[table["split"] == "val"], classes, v2.Compose([resize, *end]))
    options = {"batch_size": given.batch, "num_workers": given.workers, "persistent_workers": given.workers > 0}
    loaders = DataLoader(train, shuffle=True, **options), DataLoader(val, **options)
    epochs = common.Epochs()
    trainer = L.Trainer(max_epochs=given.epochs, accelerator="cpu", enable_progress_bar=False, num_sanity_val_steps=0)
    trainer.fit(Classifier(given, given.epochs * len(loaders[0]), epochs), *loaders)
    epochs.write()


if __name__ == "__main__":
    main()
