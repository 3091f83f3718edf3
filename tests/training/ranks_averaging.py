"""One of two processes: trains with averages of the weights, which must be the same on both."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from finetune.training.averaging import Ema, Swa
from tests.training import tiny


class Compare(Callback):
    """Compares the averages of the ranks after each validation."""

    def __init__(self, average):
        self.average = average
        self.compared = 0

    def on_validation_end(self, trainer, pl_module):
        for name, value in sorted(self.average.average.items()):
            values = [torch.empty_like(value) for _ in range(2)]
            dist.all_gather(values, value)
            assert torch.equal(*values), name
        self.compared += 1


def main(rank: int) -> None:
    for number, average in enumerate((Ema(0.9), Swa(0.25))):
        compare = Compare(average)
        folder = Path(tempfile.gettempdir()) / f"averaging-{number}-{rank}"
        trainer = tiny.trainer(folder, 3, [average, compare], devices=2, strategy="ddp")
        trainer.fit(tiny.module(), tiny.data())
        assert trainer.world_size == 2
        assert compare.compared == 3
        assert average.holds == average.name


if __name__ == "__main__":
    main(int(sys.argv[1]))
