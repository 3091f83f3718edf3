"""The case table: collected image by image in little memory, read back to the last bit."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.errors import FinetuneError
from finetune.evaluation.segmentation.cases import THRESHOLDS
from finetune.evaluation.segmentation.collect import CaseCollector, read_regions
from finetune.evaluation.segmentation.scores import SCORES
from finetune.evaluation.segmentation.table import CaseTable
from tests.evaluation.segmentation.tables import case_table

NAN = np.nan
EXCLUSIVE = ["background", "liver", "spleen"]


def exclusive() -> CaseTable:
    collector = CaseCollector(EXCLUSIVE, overlapping=False)
    truth = np.array([[1, 1, 0, 2], [1, 1, 0, 255]], np.uint8)
    prediction = np.array([[1, 1, 0, 0], [1, 0, 0, 2]], np.uint8)
    collector.update("a.png", "NA", prediction, truth, spacing=(0.5, 2.0), metadata={"sex": "F", "age": 40})
    collector.update("b.png", None, prediction, truth, known=[False, False, False], metadata={"sex": "M"})
    collector.update("c.png", "007", np.zeros((2, 2), int), np.zeros((2, 2), int))
    return collector.table()


def test_a_collected_table_worked_by_hand():
    table = exclusive()
    assert (table.regions, table.metadata, len(table)) == (["liver", "spleen"], ["sex", "age"], 3)
    assert list(table.patients) == ["NA", "b.png", "007"]
    np.testing.assert_array_equal(table.counts("truth"), [[4, 1], [NAN, NAN], [0, 0]])
    np.testing.assert_array_equal(table.counts("prediction"), [[3, 0], [NAN, NAN], [0, 0]])  # 255 is not counted
    np.testing.assert_allclose(table.scores("dice"), [[6 / 7, 0], [NAN, NAN], [NAN, NAN]])
    # the missed pixel lies 0.5 mm below and 2 mm beside predicted ones: 1 of 7 surface pixels
    np.testing.assert_allclose(table.scores("assd"), [[0.5 / 7, NAN], [NAN, NAN], [NAN, NAN]])
    assert table.confusion.tolist() == [[2 + 4, 0, 0], [1, 3, 0], [1, 0, 0]]
    assert table.unit == "mixed"
    assert table.pixels.tolist() == [7, 7, 4]


def test_probabilities_are_counted_at_every_threshold():
    collector = CaseCollector(["a", "b"], overlapping=True, thresholds={"a": 0.3})
    probabilities = np.array([[[0.3, 0.6]], [[0.1, 0.9]]], np.float32)
    truth = np.array([[0b01, 0b11]], np.uint8)
    collector.update_probabilities("x", "p", probabilities, truth)
    collector.update_probabilities("y", "q", probabilities, truth, known=[True, False])
    table = collector.table()
    assert table.thresholds == {"a": 0.3, "b": 0.5}
    np.testing.assert_array_equal(table.counts("prediction"), [[2, 1], [2, NAN]])
    curve = table.at_thresholds()
    assert curve[0, 0, :, 1].tolist() == [2] * 6 + [1] * 6 + [0] * 7
    assert np.isnan(curve[1, 1]).all()
    moved = table.marked_at({"a": 0.5, "b": 0.5})
    np.testing.assert_array_equal(moved.counts("intersection"), [[1, 1], [1, NAN]])
    np.testing.assert_allclose(moved.scores("dice"), [[2 / 3, 1], [2 / 3, NAN]])
    assert np.isnan(moved.scores("assd")[:, 0]).all()  # they need the masks
    assert moved.scores("assd")[0, 1] == 0
    assert moved.thresholds == {"a": 0.5, "b": 0.5}
    assert table.marked_at(table.thresholds) is table
    again = CaseCollector(["a", "b"], overlapping=True)
    again.update_probabilities("x", "p", probabilities, truth)
    np.testing.assert_array_equal(again.table().counts("prediction")[0], moved.counts("prediction")[0])


def same(a: CaseTable, b: CaseTable) -> None:
    pd.testing.assert_frame_equal(a.frame, b.frame, check_exact=True)
    assert (a.regions, a.overlapping, a.metadata) == (b.regions, b.overlapping, b.metadata)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reads_what_it_wrote(tmp_path_factory, data):
    n, r = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    sizes = data.draw(arrays(np.int64, (n, r, 2), elements=st.integers(0, 50)))
    counts = np.concatenate([sizes.min(axis=2, keepdims=True), sizes], axis=2).astype(float)
    counts[data.draw(arrays(bool, (n, r)))] = NAN
    distances = data.draw(arrays(np.float64, (n, r, 2), elements=st.floats(0, 1e3)))
    spacing = [data.draw(st.sampled_from([None, (0.1, 1 / 3)])) for _ in range(n)]
    curve = data.draw(st.sampled_from([None, np.arange(n * r * len(THRESHOLDS) * 2)]))
    names = ["Pleural effusion", 'a "b", c', "胸水"][:r]
    options = {"distances": distances, "spacing": spacing, "overlapping": data.draw(st.booleans())}
    table = case_table(
        counts,
        regions=names,
        curve=None if curve is None else curve.reshape(n, r, -1, 2),
        view=data.draw(st.lists(st.sampled_from(["PA", "NA", "x"]), min_size=n, max_size=n)),
        **options,
    )
    same(CaseTable.read(table.write(tmp_path_factory.mktemp("t") / "cases.csv")), table)


def test_any_patient_survives(tmp_path):
    table = case_table(np.ones((5, 1, 3)), ["NA", "007", "", None, "null"])
    assert list(table.patients) == ["NA", "007", "2.png", "3.png", "null"]
    same(CaseTable.read(table.write(tmp_path / "c.csv")), table)
    same(CaseTable.read(exclusive().write(tmp_path / "c.csv")), exclusive())


def test_no_cases(tmp_path):
    empty = CaseCollector(EXCLUSIVE, False).table()
    read = CaseTable.read(empty.write(tmp_path / "c.csv"))
    assert len(read) == 0
    assert read.confusion.shape == (3, 3)
    assert read.scores("dice").shape == (0, 2)


def test_tables_of_several_processes_are_joined():
    table = exclusive()
    parts = [table.taken(np.array([2, 0])), table.taken(np.array([1, 0])), table.taken(np.zeros(3, bool))]
    same(CaseTable.joined(parts, list(table.frame["sample"])), table)
    with pytest.raises(FinetuneError, match=r"1 samples are not those expected, such as 'c\.png'"):
        CaseTable.joined(parts, ["a.png", "b.png"])
    with pytest.raises(FinetuneError, match="other regions"):
        CaseTable.joined([table, case_table(np.ones((1, 1, 3)))])
    with pytest.raises(FinetuneError, match="no case tables"):
        CaseTable.joined([])


def test_memory_does_not_grow_with_the_images():
    collector, side = CaseCollector(EXCLUSIVE, False), 256
    truth = np.zeros((side, side), np.uint8)
    truth[20:200, 30:220], truth[100:150, 100:150] = 1, 2

    def peak(n: int) -> int:
        tracemalloc.start()
        for i in range(n):
            collector.update(f"{len(collector)}", f"{i}", np.roll(truth, i, axis=0), truth.copy())
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few = peak(3)
    assert peak(40) < few + 37 * 131_072 / 8  # two masks have 131,072 bytes
    assert len(collector.table()) == 43


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: read_regions(["liver"], False), r"exclusive regions begin with background"),
        (lambda: read_regions(["background"], False), r"there must be 1 to 254"),
        (lambda: read_regions(list("abcdefghi"), True), r"there must be 1 to 8"),
        (lambda: read_regions(["a", "a"], True), r"a name is there twice"),
        (lambda: CaseCollector(["a"], True, {"b": 0.5}), r"thresholds name \['b'\]"),
        (lambda: case_table(np.ones((2, 1, 3)), samples=["x", "x"]), r"sample 'x' is there twice"),
        (lambda: case_table(np.ones((1, 1, 3)), dice_a=[1]), r"column\(s\) \['dice_a'\] are there twice"),
        (lambda: case_table(np.ones((1, 1, 3)), truth_x=[1]), r"metadata column\(s\) \['truth_x'\] look like"),
        (lambda: case_table(np.ones((1, 1, 3))).marked_at({"a": 0.3}), r"without probabilities"),
        (lambda: exclusive().marked_at({"lung": 0.3}), r"threshold=lung is not known"),
        (
            lambda: case_table(np.ones((1, 1, 3)), curve=np.ones((1, 1, 19, 2))).marked_at({"a": 0.33}),
            r"threshold=0\.33 of a was not counted",
        ),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(FinetuneError, match=message):
        make()


def test_arguments_of_an_update_are_checked():
    collector, mask = CaseCollector(["a"], True), np.zeros((2, 2), int)
    for call, message in (
        (lambda: collector.update("x", None, mask, mask, spacing=(0, 1)), r"x: spacing=\(0, 1\) must be two numbers"),
        (lambda: collector.update("x", None, mask, mask, known=[True, True]), r"known has the shape \(2,\)"),
        (lambda: collector.update_probabilities("x", None, np.zeros((2, 2, 2)), mask), r"the shape \(2, 2, 2\).*need"),
        (lambda: collector.update_probabilities("x", None, np.full((1, 2, 2), NAN), mask), r"between 0 and 1"),
        (
            lambda: CaseCollector(EXCLUSIVE, False).update_probabilities("x", None, np.zeros((3, 2, 2)), mask),
            r"give label maps of exclusive ones",
        ),
    ):
        with pytest.raises(FinetuneError, match=message):
            call()
    assert len(collector) == 0


def test_files_that_are_no_case_table(tmp_path):
    (tmp_path / "x.csv").write_text("sample,patient\n1,2\n")
    with pytest.raises(FinetuneError, match=r"no case table: it has no column truth_<region>"):
        CaseTable.read(tmp_path / "x.csv")
    table = exclusive()
    table.frame.drop(columns="iou_spleen").to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(FinetuneError, match=r"it lacks \['iou_spleen'\]"):
        CaseTable.read(tmp_path / "x.csv")
    table.frame["dice_liver"] = 0.5
    with pytest.raises(FinetuneError, match=r"dice_liver does not follow from the counts of row 2"):
        CaseTable.read(table.write(tmp_path / "x.csv"))
    with pytest.raises(FinetuneError, match="cannot be read as a case table"):
        CaseTable.read(tmp_path / "absent.csv")


def test_every_score_has_a_column_per_region():
    assert {f"{score}_{name}" for score in SCORES for name in ("liver", "spleen")} <= set(exclusive().frame.columns)
