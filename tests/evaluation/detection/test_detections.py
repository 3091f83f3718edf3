"""The table of detections: what is written is read back to the last bit, and what cannot be scored is an error."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from finetune.errors import FinetuneError
from finetune.evaluation.detection.detections import Detections
from tests.evaluation.detection.worlds import boxes, table, worlds

BOX = (0.0, 0.0, 10.0, 10.0)
HEAD = "kind,sample,patient,label,left,top,right,bottom,score,ignored\n"


def assert_same(a, b):
    pd.testing.assert_frame_equal(a.images, b.images, check_exact=True)
    for part in ("truths", "boxes"):
        for name, column in vars(getattr(a, part)).items():
            np.testing.assert_array_equal(column, vars(getattr(b, part))[name], err_msg=f"{part}.{name}")
    assert (a.classes, a.metadata) == (b.classes, b.metadata)


@settings(max_examples=50, deadline=None)
@given(written=worlds())
def test_reads_what_it_wrote(tmp_path_factory, written):
    path = written.write(tmp_path_factory.mktemp("t") / "detections.csv")
    assert_same(Detections.read(path), written)


def test_names_sizes_and_metadata_survive(tmp_path):
    classes = ['a "quoted", name', "胸水", "NA", "nan"]
    columns = pd.DataFrame({"age": [61, 7], "view": ["PA", None], "dose": [0.1, np.nan], "a,b": ["x", "y"]})
    true = [(boxes(BOX, BOX), np.array([0, 3]), np.array([True, False])), (boxes(), np.zeros(0), np.zeros(0, bool))]
    found = [(boxes((1 / 3, 0, 2 / 3, 1e-7)), np.array([0.1 + 0.2]), np.array([2])), (boxes(), [], [])]
    sizes = np.array([[640, 480], [np.nan, np.nan]])
    written = Detections.from_arrays(["i,1.png", "2.png"], ["NA", None], classes, true, found, columns, sizes)
    assert list(written.patients) == ["NA", "2.png"]
    read = Detections.read(written.write(tmp_path / "t.csv"))
    assert_same(read, written)


def test_every_image_is_a_row_and_classes_follow_from_labels(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        HEAD + "image,1.png,,,,,,,,\nimage,2.png,,,,,,,,\ntruth,1.png,,b,0,0,1,1,,1\ndetection,1.png,,a,0,0,1,1,0.5,\n"
    )
    read = Detections.read(path)
    assert (len(read), read.classes, len(read.truths), len(read.boxes)) == (2, ["a", "b"], 1, 1)
    assert read.truths.ignored.all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("truth,9.png,,a,0,0,1,1,,", "sample '9.png', which is no image"),
        ("truth,1.png,,a,5,0,1,1,,", "is no box: a true box needs left"),
        ("truth,1.png,,a,,0,1,1,,", "is no box"),
        ("truth,1.png,,a,inf,0,1,1,,", "is no box"),
        ("truth,1.png,,a,0,0,1,1,,maybe", "ignored='maybe' must be 1, 0 or blank"),
        ("detection,1.png,,a,0,0,1,1,1.5,", "score=1.5 of a detection of '1.png' must lie between 0 and 1"),
        ("detection,1.png,,a,0,0,1,1,,", "score=nan"),
        ("detection,1.png,,a,zero,0,1,1,0.5,", "cannot be read as a table of boxes"),
        ("picture,1.png,,,,,,,,", "kind='picture' is not known"),
        ("image,1.png,,,,,,,,\ntruth,1.png,,a,0,0,1,1,,", "sample '1.png' is there twice"),
        ("class,,,b,,,,,,\ntruth,1.png,,a,0,0,1,1,,", "label 'a', which is no class; the classes are b"),
    ],
)
def test_what_cannot_be_scored_is_one_line(tmp_path, line, message):
    path = tmp_path / "t.csv"
    path.write_text(f"{HEAD}image,1.png,,,,,,,,\n{line}\n")
    with pytest.raises(FinetuneError) as error:
        Detections.read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_that_do_not_fit_are_errors(tmp_path):
    box = boxes(BOX)

    def made(true=(box, [0]), found=(box, [0.5], [0]), classes=("a",), **options):
        return Detections.from_arrays(["1"], ["p"], classes, [true], [found], **options)

    assert len(made()) == 1
    for wrong, message in (
        ({"true": (boxes(BOX), [0, 0])}, "need (M, 4)"),
        ({"found": (boxes(BOX), [0.5], [1])}, "class number 1"),
        ({"classes": ()}, "no classes"),
        ({"classes": ("a", "a")}, "class 'a' is there twice"),
        ({"metadata": pd.DataFrame({"score": [1]})}, "'score' has a name of the table"),
        ({"sizes": np.ones((2, 2))}, "sizes has 2 entries for 1 samples"),
    ):
        with pytest.raises(FinetuneError) as error:
            made(**wrong)
        assert message in str(error.value)
    with pytest.raises(FinetuneError, match="cannot be read"):
        Detections.read(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FinetuneError, match="is no table of boxes: it lacks"):
        Detections.read(tmp_path / "other.csv")


def test_select_and_reorder_take_boxes_along():
    whole = table([[(BOX, 0)], [], [(BOX, 0), (BOX, 0)]], [[], [(BOX, 0.5, 0)], [(BOX, 0.25, 0)]])
    part = whole.select(np.array([False, True, True]))
    assert list(part.images["sample"]) == ["1.png", "2.png"]
    assert (part.truths.image.tolist(), part.boxes.image.tolist()) == ([1, 1], [0, 1])
    turned = whole.reordered(np.array([2, 0, 1]))
    assert list(turned.images["sample"]) == ["1.png", "2.png", "0.png"]
    assert (turned.truths.image.tolist(), turned.boxes.score.tolist()) == ([1, 1, 2], [0.5, 0.25])
