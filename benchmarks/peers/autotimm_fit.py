"""autotimm's classifier on folders of images, without compiling."""

import autotimm
import common  # type: ignore[import-not-found]
import lightning as L
import torchmetrics


class Watch(L.Callback):
    """The AUROC is computed from the logits as they pass: it scores decisions alone."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.auroc = torchmetrics.AUROC("multiclass", num_classes=2)
        self.logits = None

    def setup(self, trainer, module, stage):
        module.register_forward_hook(self.keep)

    def keep(self, module, inputs, logits):
        self.logits = logits

    def on_validation_batch_end(self, trainer, module, outputs, batch, number, loader=0):
        self.auroc.update(self.logits.softmax(1), batch[1])

    def on_train_epoch_start(self, *_):
        self.epochs.begin()

    def on_train_epoch_end(self, trainer, module):
        self.epochs.end(self.auroc.compute())
        self.auroc.reset()


def main():
    given = common.arguments()
    data = autotimm.ImageDataModule(
        given.folders, image_size=given.size, batch_size=given.batch, num_workers=given.workers,
        persistent_workers=given.workers > 0, augmentation_preset="light", pin_memory=False,
    )  # fmt: skip
    task = {"task": "multiclass", "num_classes": 2}
    accuracy = autotimm.MetricConfig("accuracy", "torchmetrics", "Accuracy", task, ["val"])  # it scores decisions alone
    model = autotimm.ImageClassifier(
        autotimm.BackboneConfig(given.backbone, pretrained=False), 2, metrics=[accuracy], lr=given.lr,
        compile_model=False, deterministic=False,
    )  # fmt: skip
    epochs = common.Epochs()
    trainer = autotimm.AutoTrainer(
        max_epochs=given.epochs, accelerator="cpu", tuner_config=False, enable_progress_bar=False,
        callbacks=[Watch(epochs)], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    epochs.write()


if __name__ == "__main__":
    main()
