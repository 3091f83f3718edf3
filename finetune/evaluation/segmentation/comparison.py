"""Which of several networks segments better, on the same samples: paired differences, not two separate intervals.

The difference of a score is its mean over the images where both networks have it, with an interval and a p value over
patients. Images where only one has it are counted: a network that predicts a region which is not there has a Dice of 0,
one that does not has none. The variation over seeds is their spread, as in classification/comparison.py, and p values
are corrected for the number of pairs and regions (Holm, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.classification.comparison import holm, seed_noise
from finetune.evaluation.segmentation.scores import SCORES
from finetune.evaluation.segmentation.summary import Scorer, as_interval
from finetune.evaluation.segmentation.table import CaseTable
from finetune.files import plain
from finetune.statistics import intervals, means
from finetune.statistics.means import Mean

COMPARED = ("dice", "iou", "assd", "hd95")


def compare(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """{n, patients, classes, kind, candidates: [...], pairs: [...], seed_noise}, in plain values.

    A candidate has `scores`: the mean over regions of each of `COMPARED` as macro_<score>, with the value of each seed.
    A pair has `scores` of the same names and `classes`: region -> score -> {a, b, value, low, high, p, p_holm, n,
    only_a, only_b}; `value` is a less b, `only_a` counts images where only a has the score.

    Raises:
        FinetuneError: the samples, their regions or their truth are not the same.
    """
    candidates = aligned(candidates)
    first = candidates[0].members[0]
    scorers = [Scorer(mean_over_seeds(candidate.members)) for candidate in candidates]
    of_seeds = [[_macro(Scorer(member)) for member in candidate.members] for candidate in candidates]
    noise = seed_noise(of_seeds)
    described = []
    for candidate, scorer, values in zip(candidates, scorers, of_seeds, strict=True):
        scores = {}
        for score in COMPARED:
            interval = as_interval(score, scorer.mean(score)).as_dict()
            scores[f"macro_{score}"] = {**interval, "seeds": [of_seed[f"macro_{score}"] for of_seed in values]}
        described.append({"label": candidate.label, "seeds": candidate.seeds, "scores": scores})
    pairs: list[dict[str, Any]] = []
    for i, j in combinations(range(len(candidates)), 2):
        a, b = scorers[i], scorers[j]
        changes = {f"macro_{score}": paired(a, b, score) for score in COMPARED}
        for name, change in changes.items():
            if name in noise:
                reach = noise[name]["t"] * noise[name]["sd"]
                change["seed_noise"] = reach * (1 / len(of_seeds[i]) + 1 / len(of_seeds[j])) ** 0.5
        classes = {name: {score: paired(a, b, score, k) for score in COMPARED} for k, name in enumerate(first.regions)}
        pairs.append({"a": candidates[i].label, "b": candidates[j].label, "scores": changes, "classes": classes})
    for score in COMPARED:
        holm([pair["scores"][f"macro_{score}"] for pair in pairs])
        holm([of_class[score] for pair in pairs for of_class in pair["classes"].values()])
    return plain(
        {
            "n": len(first),
            "patients": scorers[0].n_patients,
            "classes": first.regions,
            "kind": "mask",
            "unit": "mm" if first.unit == "mixed" else first.unit,
            "intervals": {"level": intervals.LEVEL, "unit": "patient"},
            "candidates": described,
            "pairs": pairs,
            "seed_noise": noise,
        }
    )


def paired(a: Scorer, b: Scorer, score: str, k: int | None = None) -> dict[str, Any]:
    """{a, b, value, low, high, p, n, only_a, only_b} of one region, or of the mean over regions."""
    of_a, of_b = (s.values[score] if k is None else s.values[score][:, [k]] for s in (a, b))
    has_a, has_b = ~np.isnan(of_a), ~np.isnan(of_b)
    both = has_a & has_b

    def mean(values: np.ndarray) -> Mean:
        return means.mean(np.where(both, values, np.nan), a.patient, a.n_patients)

    change = mean(of_a - of_b)
    counts = {"n": int(both.sum()), "only_a": int((has_a & ~has_b).sum()), "only_b": int((has_b & ~has_a).sum())}
    return {"a": mean(of_a).value, "b": mean(of_b).value, **change.signed().as_dict(), "p": change.p, **counts}


def mean_over_seeds(members: Sequence[CaseTable]) -> CaseTable:
    """A table whose scores are the means over those of the same samples; NaN where a member has none."""
    if len(members) == 1:
        return members[0]
    table = members[0].renumbered()
    for score in SCORES:
        values = np.mean([member.scores(score) for member in members], axis=0)
        table.frame[[f"{score}_{name}" for name in table.regions]] = values
    return table


def aligned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """All members in the order of the first one's samples.

    Raises:
        FinetuneError: naming what differs.
    """
    first, name = candidates[0].members[0], candidates[0].label
    order = first.frame["sample"]
    result = []
    for candidate in candidates:
        where = f"{name} and {candidate.label} cannot be compared"
        members = []
        for member in candidate.members:
            if (member.regions, member.overlapping) != (first.regions, first.overlapping):
                odd = sorted(set(member.regions) ^ set(first.regions)) or "their order, or whether they overlap"
                raise FinetuneError(f"{where}: regions differ in {odd}.")
            mine, theirs = set(order), set(member.frame["sample"])
            if mine != theirs:
                only = [
                    f"{len(part):,} only in {who} (such as {min(part)})"
                    for who, part in ((name, mine - theirs), (candidate.label, theirs - mine))
                    if part
                ]
                raise FinetuneError(f"{where}: of their samples {' and '.join(only)}.")
            row = {sample: i for i, sample in enumerate(member.frame["sample"])}
            member = member.taken(np.array([row[sample] for sample in order], int))
            truth, expected = member.counts("truth"), first.counts("truth")
            same = (truth == expected) | (np.isnan(truth) & np.isnan(expected))
            if not same.all():
                i, k = np.argwhere(~same)[0]
                raise FinetuneError(
                    f"{where}: the truth has other pixels in {(~same).any(axis=1).sum():,} images, first "
                    f"{first.regions[k]} of {order.iloc[i]}. Evaluate both on the same masks, of the same size."
                )
            if (member.patients != first.patients).any():
                raise FinetuneError(f"{where}: their patients differ.")
            if member.unit != first.unit:
                raise FinetuneError(f"{where}: distances are in {first.unit} and {member.unit}.")
            members.append(member)
        result.append(Candidate(candidate.label, members, candidate.seeds))
    return result


def _macro(scorer: Scorer) -> dict[str, float]:
    return {f"macro_{score}": scorer.mean(score).value for score in COMPARED}
