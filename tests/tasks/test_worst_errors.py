"""The worst errors of a fit: what is written for each, and for constant maps."""

import numpy as np

from finetune.evaluation.classification.predictions import Predictions
from finetune.runs.folder import RunFolder
from finetune.tasks.classification import worst_errors


def test_a_constant_map_is_not_written(tmp_path, monkeypatch):
    """It would be the image again, with a legend of colours."""
    target, logits = np.array([[1.0], [1.0]]), np.array([[-3.0], [-2.0]])
    predictions = Predictions.from_arrays(["a.png", "b.png"], ["p", "q"], ["Mass"], "multilabel", target, logits)
    maps = np.stack([np.zeros((8, 8)), np.eye(8)]).astype(np.float32)
    monkeypatch.setattr(worst_errors, "table_rows", lambda data, samples: [0, 1])
    monkeypatch.setattr(worst_errors, "heat_maps", lambda network, data, rows, classes: maps)
    monkeypatch.setattr(worst_errors, "input_image", lambda data, row: np.full((8, 8), 100, np.uint8))
    records = worst_errors.write_worst_errors(RunFolder(tmp_path), None, None, predictions, 5)
    assert [record["sample"] for record in records] == ["a.png", "b.png"]
    assert [bool(record["heat"]) for record in records] == [False, True]
