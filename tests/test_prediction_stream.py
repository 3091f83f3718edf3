"""Lists of images, read ahead in threads: the tables are those of one list after the other."""

import threading

import numpy as np
import pandas as pd
import pytest
import torch

from finetune.errors import BadImage
from finetune.image_batches import list_batches, read_ahead
from finetune.prediction_stream import made_ahead, until
from finetune.preprocessing import Preprocessing
from tests import package_cases as cases

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (9 + i, 12, 3)[: 2 + i % 2], np.uint8) for i in range(11)]


@pytest.mark.parametrize("workers", [0, 3])
def test_each_list_has_the_table_that_it_has_alone(workers):
    model = cases.multilabel()
    bad = BadImage("x.png", "is bad")
    lists = [IMAGES[:5], None, [bad, bad], [], [*IMAGES[5:], bad], None]
    tables = list(model.predict_stream(iter(lists), batch_size=2, workers=workers))
    assert len(tables) == 4
    for table, images in zip(tables, (images for images in lists if images is not None), strict=True):
        pd.testing.assert_frame_equal(table, model.predict_all(images, batch_size=2))
    assert tables[1]["error"].tolist() == ["is bad", "is bad"]


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_normalised_later_give_the_same_bits(channels):
    preprocessing = Preprocessing(8, channels, (0.4,) * channels, (0.3,) * channels)
    floats, ints = (
        [
            batch["image"]
            for batch in list_batches([IMAGES], preprocessing, 4, normalise=now)
            if batch["image"] is not None
        ]
        for now in (True, False)
    )
    for expected, raw in zip(floats, ints, strict=True):
        assert raw.dtype == torch.uint8
        torch.testing.assert_close(preprocessing.normalise(raw), expected, rtol=0, atol=0)


def test_a_pause_delivers_all_that_was_read_before_more_is_asked_for():
    """The next list is known only once the first is done: it must not be waited for in between."""
    delivered = threading.Event()

    def lists():
        yield [1, 2, 3]
        yield None
        assert delivered.is_set()
        yield [4]

    results = []
    for images, outcomes in read_ahead(lists(), lambda image: image * 10, workers=2, ahead=8):
        results.append((images, list(outcomes)))
        delivered.set()
    assert results == [([1, 2, 3], [10, 20, 30]), ([4], [40])]


def test_an_abandoned_stream_ends_its_threads():
    before = threading.active_count()
    stream = cases.multilabel().predict_stream(([image] for image in IMAGES * 20), batch_size=2, workers=2)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_an_error_while_reading_reaches_the_caller():
    def lists():
        yield IMAGES[:3]
        raise ValueError("of the list")

    with pytest.raises(ValueError, match="of the list"):
        list(cases.multilabel().predict_stream(lists(), batch_size=2, workers=2))


def test_a_thread_that_waits_for_others_ends_when_no_more_batches_are_taken():
    """Lists may be None for as long as other processes are at work."""
    stopped = threading.Event()

    def waiting():
        yield [1]
        while True:
            yield None

    def batches():
        for images in until(stopped, waiting()):
            if images is not None:
                yield {"images": images}

    ahead = made_ahead(batches(), 2, stopped)
    assert next(ahead) == {"images": [1]}
    ahead.close()  # hangs where the thread goes on
    assert stopped.is_set()
