"""fastai's vision learner with a timm network and its batch transforms."""

import common  # type: ignore[import-not-found]
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Resize,
    ResizeMethod,
    RocAucBinary,
    aug_transforms,
    vision_learner,
)


class Watch(Callback):
    order = 90

    def __init__(self, epochs):
        self.epochs = epochs

    def before_epoch(self):
        self.epochs.begin()

    def after_epoch(self):
        self.epochs.end(self.recorder.values[-1][-1] if self.recorder.values else float("nan"))


def main():
    given = common.arguments()
    table = common.read_table(given)
    table = table[table["split"].isin(["train", "val"])]
    table = table.assign(is_valid=table["split"] == "val", path=[path.lstrip("/") for path in table["path"]])
    augment = aug_transforms(do_flip=False, max_rotate=7, min_zoom=1.0, max_zoom=1.08, max_lighting=0.1, max_warp=0)
    loaders = ImageDataLoaders.from_df(
        table, path="/", fn_col="path", label_col="label", valid_col="is_valid", bs=given.batch,
        num_workers=given.workers, item_tfms=Resize(given.size, ResizeMethod.Squish), batch_tfms=augment,
    )  # fmt: skip
    epochs = common.Epochs()
    learner = vision_learner(loaders, given.backbone, pretrained=False, metrics=RocAucBinary(), cbs=Watch(epochs))
    learner.unfreeze()
    learner.fit_one_cycle(given.epochs, given.lr)
    epochs.write()


if __name__ == "__main__":
    main()
