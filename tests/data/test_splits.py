from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.splits import assign_splits, keep_copies_together, stratified_group_split
from finetune.data.table import SampleTable, Strata
from finetune.errors import FinetuneError
from tests.data.making import make_table

ROOT = Path("/data")


def of(table: SampleTable) -> list[str]:
    return table.frame["split"].tolist()


@st.composite
def tables(draw):
    """Tables of 30 to 60 patients with 1 to 4 images each and up to three findings, some unknown."""
    patients = draw(st.lists(st.integers(1, 4), min_size=30, max_size=60))
    names = [f"p{i}" for i, images in enumerate(patients) for _ in range(images)]
    findings = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = rng.choice([0.0, 1.0, np.nan], size=(len(names), findings), p=[0.6, 0.3, 0.1])
    return make_table(ROOT, names, targets.tolist())


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(0, 2**40), st.randoms())
def test_properties_of_a_draw(table, seed, random):
    split = assign_splits(table, seed=seed, val=0.15, test=0.25).check()
    frame = split.frame
    assert set(frame["split"]) == {"train", "val", "test"}  # every row, and no split empty
    assert frame.groupby("patient")["split"].nunique().max() == 1
    share = frame["split"].value_counts(normalize=True)
    for name, part in {"train": 0.6, "val": 0.15, "test": 0.25}.items():
        assert abs(share[name] - part) < 0.2
    for column in split.target_columns:
        positive = frame["split"][frame[column] == 1]
        assert abs((positive == "test").sum() - 0.25 * len(positive)) <= 9
    assert of(assign_splits(table, seed=seed, val=0.15, test=0.25)) == of(split)  # the same again
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = replace(table, frame=table.frame.iloc[order].reset_index(drop=True))
    again = assign_splits(shuffled, seed=seed, val=0.15, test=0.25).frame
    assert dict(zip(again["path"], again["split"], strict=True)) == dict(
        zip(frame["path"], frame["split"], strict=True)
    )


def test_drawn_splits_have_their_shares():
    """The bounds above hold for whatever table is found; of tables as they come nearly all are far inside them."""
    rng = np.random.default_rng(0)
    of_rows, of_findings = [], []
    for seed in range(60):
        names = [f"p{i}" for i in range(rng.integers(30, 60)) for _ in range(rng.integers(1, 5))]
        targets = rng.choice([0.0, 1.0, np.nan], size=(len(names), 3), p=[0.6, 0.3, 0.1])
        split = assign_splits(make_table(ROOT, names, targets.tolist()), seed=seed, val=0.15, test=0.25)
        test = (split.frame["split"] == "test").to_numpy()
        of_rows.append(abs(test.mean() - 0.25))
        of_findings += [abs(test[column == 1].sum() - 0.25 * (column == 1).sum()) for column in targets.T]
    assert np.median(of_rows) < 0.02
    assert np.quantile(of_rows, 0.95) < 0.06
    assert np.median(of_findings) < 1
    assert np.quantile(of_findings, 0.95) < 2.5


@settings(max_examples=15, deadline=None)
@given(tables(), st.integers(0, 1000), st.integers(2, 5))
def test_properties_of_folds(table, seed, folds):
    drawn = [assign_splits(table, seed=seed, folds=folds, fold=k) for k in range(folds)]
    tested = np.concatenate([one.rows("test") for one in drawn])
    assert sorted(tested.tolist()) == list(range(len(table)))  # each image is tested exactly once
    for one in drawn:
        assert one.frame.groupby("patient")["split"].nunique().max() == 1
        assert abs(len(one.rows("test")) / len(table) - 1 / folds) < 0.2
        assert len(one.rows("val")) > 0


def test_another_seed_is_another_draw():
    table = make_table(ROOT, [f"p{i}" for i in range(60)])
    assert len({tuple(of(assign_splits(table, seed=seed))) for seed in range(5)}) == 5


def test_a_draw_never_changes_between_releases():
    table = make_table(ROOT, ["a", "a", "b", "c", "d", "e", "f", "g", "h", "i"], [[i % 3 == 0] for i in range(10)])
    assert "".join(s[1] for s in of(assign_splits(table, seed=0))) == "rrrearrerr"  # tRain, vAl, tEst


def test_fractions_are_exact_where_they_can_be():
    targets = np.eye(4)[np.arange(400) % 4]
    table = make_table(ROOT, None, targets.tolist(), kind="multiclass")
    frame = assign_splits(table, seed=3).frame
    counts = frame.groupby("split")[table.target_columns].sum()
    assert (counts.loc["train"] == 70).all()
    assert (counts.loc["val"] == 10).all()
    assert (counts.loc["test"] == 20).all()


def test_another_choice_of_labels_moves_no_patient():
    rng = np.random.default_rng(0)
    names = [f"p{i // 2}" for i in range(200)]
    labels = rng.random((200, 14)) < rng.uniform(0.02, 0.4, 14)
    strata = Strata(labels)
    for options in ({}, {"folds": 4, "fold": 1}, {"val": 0}):
        splits = []
        for chosen in ([0, 1], [5], range(14)):
            table = replace(make_table(ROOT, names, labels[:, list(chosen)].tolist()), strata=strata)
            splits.append(of(assign_splits(table.check(), seed=3, **options)))
        assert splits[0] == splits[1] == splits[2]


def test_most_patients_stay_where_rows_are_added_and_the_test_stays_where_val_grows():
    rng = np.random.default_rng(1)
    labels = (rng.random((400, 3)) < (0.05, 0.2, 0.5)).astype(float).tolist()
    names = [f"p{i}" for i in range(400)]
    whole = of(assign_splits(make_table(ROOT, names, labels), seed=0))
    part = of(assign_splits(make_table(ROOT, names[:360], labels[:360]), seed=0))
    assert sum(a != b for a, b in zip(whole, part, strict=False)) <= 18  # one in twenty; half of them by a new draw
    wide = of(assign_splits(make_table(ROOT, names, labels), seed=0, val=0.2))
    assert sum((a == "test") != (b == "test") for a, b in zip(whole, wide, strict=True)) <= 8


def test_sets_that_are_split_apart_are_split_as_they_would_be_alone():
    rng = np.random.default_rng(2)
    one = make_table(ROOT, [f"p{i // 2}" for i in range(60)], (rng.random((60, 1)) < 0.3).astype(float).tolist())
    other = make_table(ROOT, [f"p{i}" for i in range(50)], (rng.random((50, 1)) < 0.2).astype(float).tolist())
    own = np.array([*one.frame["patient"], *other.frame["patient"]], object)
    sets = np.array(["a"] * 60 + ["b"] * 50, object)
    labels = np.concatenate([one.targets() == 1, other.targets() == 1])
    names = [f"{a}:{b}" for a, b in zip(sets, own, strict=True)]
    paths = [f"{i}.png" for i in range(110)]
    both = replace(
        make_table(ROOT, names, labels.astype(float).tolist(), paths=paths), strata=Strata(labels, sets, own)
    )
    for options in ({}, {"folds": 3, "fold": 2}):
        alone = [*of(assign_splits(one, seed=5, **options)), *of(assign_splits(other, seed=5, **options))]
        assert of(assign_splits(both, seed=5, **options)) == alone


def test_strata_of_another_length_are_refused():
    with pytest.raises(FinetuneError, match="3 rows, but strata of 2"):
        replace(make_table(ROOT, ["p", "q", "r"]), strata=Strata(np.zeros((2, 1), bool))).check()


def test_the_rarest_class_goes_to_train_first():
    targets = np.zeros((100, 2))
    targets[:50, 0] = 1
    for rare in (1, 2, 3):
        targets[:, 1] = np.arange(100) >= 100 - rare
        for seed in range(5):
            split = assign_splits(make_table(ROOT, None, targets.tolist()), seed=seed)
            assert split.frame["target_c1"][split.rows("train")].sum() >= 1


def test_deal_by_hand():
    # One label. Groups of 4, 2, 1, 1 rows into halves of 4: the large one fills one half, the rest the other.
    dealt = stratified_group_split(
        np.array([[1], [4], [2], [1]]), np.array([1, 4, 2, 1]), [0.5, 0.5], np.linspace(0, 1, 4)
    )
    assert dealt.tolist() == [1, 0, 1, 1]
    # Groups alike: a fifth, a tenth and the rest of ten, and those with the lowest places come into the first part.
    places = np.array([0.5, 0.9, 0.05, 0.3, 0.7, 0.2, 0.6, 0.4, 0.8, 0.95])
    dealt = stratified_group_split(np.ones((10, 1), int), np.ones(10, int), [0.2, 0.1, 0.7], places)
    assert dealt.tolist() == [2, 2, 0, 1, 2, 0, 2, 2, 2, 2]


def test_patients_with_many_images_are_in_every_split():
    names = [f"p{i}" for i in range(200) for _ in range(8 if i < 40 else 1)]
    frame = assign_splits(make_table(ROOT, names, [[1.0]] * len(names)), seed=0).frame
    large = frame[frame.groupby("patient")["path"].transform("size") == 8]
    assert large.groupby("split")["patient"].nunique().to_dict() == {"train": 28, "val": 4, "test": 8}


def test_given_splits_are_kept():
    table = make_table(ROOT, None, None, ["train", "val", "test", "train"])
    assert assign_splits(table, seed=0) is table
    only_test = make_table(ROOT, None, None, ["test"] * 3)
    assert assign_splits(only_test, seed=0) is only_test


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train"] * 50 + ["test"] * 10, {"train": 45, "val": 5, "test": 10}),
        (["train"] * 50 + ["val"] * 10, {"train": 40, "val": 10, "test": 10}),
        (["train"] * 60, {"train": 42, "val": 6, "test": 12}),
    ],
)
def test_what_is_not_given_is_cut_from_train(given, expected):
    table = make_table(ROOT, [f"p{i}" for i in range(60)], None, given)
    split = assign_splits(table, seed=0)
    assert split.frame["split"].value_counts().to_dict() == expected
    kept = [(a, b) for a, b in zip(given, of(split), strict=True) if a != "train"]
    assert all(a == b for a, b in kept)
    assert "it is cut from train by patient (data.seed=0)" in split.notes[-1]
    assert assign_splits(table, seed=0, val=0, test=0) is table


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        (["train", "test", None], {}, r"1 row\(s\) have no split"),
        (["train", "test", "test"], {"fold": 0, "folds": 2}, "data.fold=0: table toy gives its own split"),
        (None, {"fold": 5, "folds": 5}, "data.fold=5 is not one of the 5 folds: choose 0 to 4"),
        (None, {"fold": 0, "folds": 1}, "data.folds of at least 2"),
        (None, {"fold": 0}, "data.folds of at least 2"),
        (None, {"val": 0.5, "test": 0.5}, "leave some for train"),
        (None, {"val": -0.1}, "val_fraction=-0.1"),
    ],
)
def test_contradictions_are_named(splits, options, message):
    with pytest.raises(FinetuneError, match=message):
        assign_splits(make_table(ROOT, ["p", "q", "r"], None, splits), seed=0, **options)


def test_too_few_patients():
    with pytest.raises(FinetuneError, match="1 patients cannot fill 3 splits"):
        assign_splits(make_table(ROOT, ["p"] * 9), seed=0)
    with pytest.raises(FinetuneError, match="2 images cannot fill 3 splits"):
        assign_splits(make_table(ROOT, paths=["a.png", "b.png"], targets=[[0], [1]]), seed=0)


def test_copies_are_mended_by_hand():
    """Rows 0 and 3 show one image, as do 3 and 4: patients p, r and s end up in train, all of their images."""
    table = make_table(ROOT, ["p", "q", "r", "r", "s", "s"], None, ["train", "val", "val", "val", "test", "test"])
    drawn = replace(table, generated_splits=("train", "val", "test"))
    result = keep_copies_together(drawn, [(4, 3), (0, 3)])
    assert result.frame["split"].tolist() == ["train", "val", "train", "train", "train", "train"]
    assert "4 image(s) of 2 patient(s) changed to the split of a copy" in result.notes[-1]
    assert keep_copies_together(drawn, [(2, 3)]) is drawn
    assert keep_copies_together(table, [(0, 3)]) is table  # every border was given
    half = replace(table, generated_splits=("train", "val"))
    assert keep_copies_together(half, [(0, 4), (0, 2)]).frame["split"].tolist() == [
        "train",
        "val",
        "train",
        "train",
        "test",
        "test",
    ]


def test_what_is_drawn_is_known():
    everyone = make_table(ROOT, None, np.eye(2)[np.arange(40) % 2])
    assert assign_splits(everyone, seed=0).generated_splits == ("train", "val", "test")
    assert assign_splits(everyone, seed=0, folds=4, fold=1).generated_splits == ("train", "val", "test")
    given = everyone.with_split(["train"] * 30 + ["test"] * 10)
    assert assign_splits(given, seed=0).generated_splits == ("train", "val")
    assert assign_splits(given.with_split(["train", "val"] * 20), seed=0, test=0).generated_splits == ()
