"""Two networks on the same masks: paired differences over patients."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.segmentation.comparison import compare
from tests.evaluation.segmentation.tables import case_table, dice_table

NAN = np.nan


def candidates(*tables, seeds=1):
    return [Candidate(chr(97 + i), list(members), list(range(seeds))) for i, members in enumerate(tables)]


def test_one_image_per_patient_gives_the_paired_t_test():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.5, 0.8, 30).round(3)
    b = (a + rng.normal(0.03, 0.05, 30)).round(3)
    result = compare(candidates([dice_table(a)], [dice_table(b)]))
    change = result["pairs"][0]["classes"]["a"]["dice"]
    reference = ttest_rel(a, b)
    assert change["value"] == pytest.approx(a.mean() - b.mean())
    assert change["p"] == pytest.approx(reference.pvalue)
    assert (change["low"], change["high"]) == pytest.approx(tuple(reference.confidence_interval()))
    assert (change["n"], change["only_a"], change["only_b"]) == (30, 0, 0)
    assert change["p_holm"] == change["p"]
    assert result["pairs"][0]["scores"]["macro_dice"]["value"] == change["value"]
    assert result["candidates"][0]["scores"]["macro_dice"]["value"] == pytest.approx(a.mean())
    assert (result["n"], result["patients"], result["classes"], result["seed_noise"]) == (30, 30, ["a"], {})


def test_images_of_a_patient_count_together():
    rng = np.random.default_rng(0)
    level = np.repeat(rng.normal(0.05, 0.1, 12), 5)
    a = np.full(60, 0.5)
    patients = [f"p{i // 5}" for i in range(60)]
    together = compare(candidates([dice_table(a + level, patients)], [dice_table(a, patients)]))
    alone = compare(candidates([dice_table(a + level)], [dice_table(a)]))
    wide, narrow = (r["pairs"][0]["classes"]["a"]["dice"] for r in (together, alone))
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    assert together["patients"] == 12


def test_what_only_one_network_has_is_counted():
    counts_a = np.array([[50, 100, 100]] * 12 + [[0, 0, 0], [0, 0, 30]])[:, None]
    counts_b = np.array([[60, 100, 100]] * 12 + [[0, 0, 30], [0, 0, 0]])[:, None]
    change = compare(candidates([case_table(counts_a)], [case_table(counts_b)]))["pairs"][0]["classes"]["a"]["dice"]
    assert (change["n"], change["only_a"], change["only_b"]) == (12, 1, 1)
    assert change["value"] == pytest.approx(-0.1)
    assert change["p"] is None  # no spread


def test_samples_are_matched_and_seeds_averaged():
    order = np.random.default_rng(0).permutation(12)
    a, b = np.linspace(0.5, 0.72, 12).round(3), np.linspace(0.6, 0.71, 12).round(3)
    shuffled = dice_table(b).taken(order)
    result = compare(candidates([dice_table(a), dice_table(a + 0.1)], [shuffled, dice_table(b)], seeds=2))
    change = result["pairs"][0]["scores"]["macro_dice"]
    assert change["value"] == pytest.approx((a + 0.05 - b).mean())
    assert result["candidates"][0]["scores"]["macro_dice"]["seeds"] == pytest.approx([a.mean(), a.mean() + 0.1])
    assert result["seed_noise"]["macro_dice"]["df"] == 2
    assert change["seed_noise"] > 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (case_table([[1, 2, 2]] * 3, regions=["x"]), r"a and b cannot be compared: regions differ in \['a', 'x'\]"),
        (case_table([[1, 2, 2]] * 4), r"of their samples 1 only in b \(such as 3\.png\)"),
        (case_table([[1, 2, 2], [1, 2, 2], [1, 3, 2]]), r"the truth has other pixels in 1 images, first a of 2\.png"),
        (case_table([[1, 2, 2]] * 3, ["x", "y", "z"]), r"their patients differ"),
        (case_table([[1, 2, 2]] * 3, spacing=[(1, 1)] * 3), r"distances are in px and mm"),
    ],
)
def test_tables_that_cannot_be_compared(other, message):
    with pytest.raises(FinetuneError, match=message):
        compare(candidates([case_table([[1, 2, 2]] * 3)], [other]))
