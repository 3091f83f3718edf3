"""cases.json: what is written is read, which images are shown, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.pages.cases import Case, Cases, ranked, shown


def test_what_is_written_is_read(tmp_path):
    case = Case("a.png", "p1", "worst", 0.25, "YQ==", "Yg==", {"lung": 0.25, "heart": None})
    cases = Cases("dice", [case], {"lung": [0.25, None]}, {"lung": [12.0, None]}, "mm²", [0, 2])
    assert Cases.read(cases.write(tmp_path / "cases.json")) == cases
    (entry,) = shown(cases, "segment")
    assert (entry["id"], entry["text"]) == ("case-1", "Worst: Dice 0.250")
    assert entry["classes"] == "lung 0.250, heart undefined"
    assert (entry["image"], entry["plain"]) == ("Yg==", "YQ==")


def test_the_worst_come_first():
    cases = [Case(f"{rank}.png", "p", rank, 0.5, "", "") for rank in ("best", "worst", "median")]
    assert [case["rank"] for case in shown(Cases("dice", cases), "segment")] == ["Worst", "Median", "Best"]
    assert shown(None, "segment") == []


def test_ranks_by_hand():
    values = [0.9, 0.1, None, 0.5, float("nan"), 0.7, 0.3]
    assert ranked(values, each=1) == [(1, "worst"), (3, "median"), (0, "best")]
    assert ranked(values, each=2) == [(1, "worst"), (6, "worst"), (3, "median"), (0, "best"), (5, "best")]
    assert ranked(values, each=1, higher_is_better=False)[0] == (0, "worst")
    assert ranked([0.4]) == [(0, "worst")]
    assert ranked([]) == ranked([None]) == []


@given(st.lists(st.none() | st.floats(0, 1), max_size=30), st.integers(1, 4))
def test_no_image_has_two_ranks(values, each):
    found = ranked(values, each)
    numbers = [number for number, _ in found]
    assert len(numbers) == len(set(numbers)) == min(3 * each, sum(value is not None for value in values))
    worst, best = ([values[n] for n, rank in found if rank == name] for name in ("worst", "best"))
    assert not best or max(worst) <= min(best)
    assert not np.isnan([values[n] for n in numbers]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Case("a.png", "p", "odd", 0.5, "", ""),
            "rank=odd of a.png is not known. Choose from worst",
        ),
        (lambda: Case("a.png", "p", "best", 0.5, '"><b', ""), "image of a.png is not base64"),
        (lambda: Cases("dice", sizes={"lung": [1.0]}), "sizes of lung are of 1 images, values of 0"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(FinetuneError, match=message):
        make()
