"""Problems to know before trusting a run, the most harmful first: rules over the scores of a split in scores.json.

Each rule is a function of the scores alone. It fires only beyond chance, both of this split and of the patients of val
that were fitted on; with several classes or sides, limits are widened for the number of comparisons (Bonferroni). The
rules, in order of harm:

- calibration: it raises the log loss by more than `MIN_RISE` of it, and more than fitting it to so few patients does.
- sets: conformal sets miss the truth at least `MISSES` times as often as promised.
- points: a threshold chosen for a sensitivity, specificity or PPV misses that goal by as much.
- baseline: the accuracy is not shown to be above that of always predicting the largest class; for a multilabel class
  without a calibration, the probabilities are worse than giving every image the share of positives.
- never found: a class of which no image is found, where that rules out a sensitivity of `HALF`.
- val and test: their intervals of the same score do not overlap.

Nothing is corrected here. Whatever was fitted on val is stored unchanged: dropping a calibration or moving a threshold
because of test would be fitting on test, and no images would be left to measure the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import scipy

from finetune.evaluation import wording
from finetune.statistics.intervals import LEVEL

MIN_RISE = 0.02
MISSES = 1.5
HALF = 0.5
PARAMETERS = {"temperature": 1, "platt": 2, "isotonic": 10}
"""Numbers fitted by a calibration, for each class but of a temperature; of a curve its approximate number of steps."""
MAX_NAMED = 5
"""Classes named with their numbers in a sentence."""

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Harm:
    """One rule that fired."""

    rule: str
    short: str
    """A few words for the verdict."""
    text: str
    """A sentence with its numbers."""
    classes: list[str] = field(default_factory=list)
    """Those it holds for; empty where it holds for all together."""


def harms(scores: Scores, split: str = "test", val: Scores | None = None) -> list[dict[str, Any]]:
    """{rule, short, text, classes} of every rule that fires on the `scores` of a split, the most harmful first.

    Args:
        val: the scores of val, where `scores` are those of test.
    """
    fired = [
        calibration(scores),
        sets(scores, val),
        points(scores, val),
        baseline(scores),
        never_found(scores),
        val_and_test(val, scores, split) if val else None,
    ]
    return [asdict(harm) for harm in fired if harm is not None]


def calibration(scores: Scores) -> Harm | None:
    """Calibrated probabilities have a higher log loss than those of the network.

    Fitted to right probabilities it makes them slightly wrong: of D numbers fitted to P patients, the rise times 2 P
    follows a chi-squared distribution of D degrees of freedom.
    """
    about = scores.get("calibration") or {}
    every = {"": about["overall"]} if "overall" in about else about.get("classes", {})
    fitted = PARAMETERS.get(about.get("method", ""), 1)
    if "overall" in about and fitted > 1:
        fitted *= len(scores["classes"])
    patients = (about.get("fitted_on") or {}).get("patients") or float("inf")
    by_fitting = float(scipy.stats.chi2.isf(tail(len(every)), fitted)) / (2 * patients)

    def worse(part: Scores) -> bool:
        change, before = part["difference"]["log_loss"], part["before"]["log_loss"]["value"]
        low = stretched(change, len(every))[0]
        return low is not None and low > by_fitting and change["value"] > MIN_RISE * before

    names = [name for name, part in every.items() if worse(part)]
    if not names:
        return None

    def numbers(name: str) -> str:
        before, after = (every[name][when]["log_loss"]["value"] for when in ("before", "after"))
        change = wording.difference(every[name]["difference"]["log_loss"])
        return f"{name + ' ' if name else ''}from {before:.3f} to {after:.3f}, {change}"

    return Harm(
        "calibration",
        f"calibration makes the probabilities{of_classes(names)} worse",
        f"Calibration makes the probabilities worse here. It raises the log loss: {listed(names, numbers)}. "
        "Use prob_…, not calibrated_….",
        [name for name in names if name],
    )


def sets(scores: Scores, val: Scores | None = None) -> Harm | None:
    """Conformal sets hold the truth less often than promised."""
    about = scores.get("conformal") or {}
    if "overall" in about:
        looks = {("", "images"): about["overall"]["coverage"]}
    else:
        sides = {"yes": "positives", "no": "negatives"}
        looks = {
            (name, sides[s]): sides_of_class[s]
            for name, sides_of_class in about.get("classes", {}).items()
            for s in sides
        }
    names = [
        (name, side)
        for (name, side), share in looks.items()
        if falls_short(share, 1 - about["error"], len(looks), fitted_on(scores, val, name, side))
    ]
    if not names:
        return None

    def numbers(key: tuple[str, str]) -> str:
        return f"of {wording.percent(looks[key])} of the {key[1]}{' of ' + key[0] if key[0] else ''}"

    promised = f"{100 * (1 - about['error']):g} %"
    classes = list(dict.fromkeys(name for name, _ in names if name))
    return Harm(
        "sets",
        f"conformal sets hold the truth less often than promised{of_classes(classes)}",
        f"Conformal sets should hold the truth of {promised}, but hold that {listed(names, numbers)}.",
        classes,
    )


def points(scores: Scores, val: Scores | None = None) -> Harm | None:
    """A threshold chosen for a goal on val misses it."""
    goals = {"sensitivity": "positives", "specificity": "negatives", "ppv": "positives"}
    every = {k: p for k, p in (scores.get("operating_points") or {}).items() if p.get("goal") in goals}
    looks = {(name, c): values[p["goal"]] for name, p in every.items() for c, values in p["classes"].items()}
    short = [
        (name, c)
        for (name, c), share in looks.items()
        if falls_short(
            share, every[name]["goal_value"], len(looks), fitted_on(scores, val, c, goals[every[name]["goal"]])
        )
    ]
    if not short:
        return None

    def numbers(key: tuple[str, str]) -> str:
        goal = every[key[0]]["goal"]
        name = "PPV" if goal == "ppv" else goal
        return f"{key[1]} at {key[0]} has a {name} of {wording.percent(looks[key])}"

    classes = list(dict.fromkeys(c for _, c in short))
    return Harm(
        "points",
        f"operating points miss their goal{of_classes(classes)}",
        f"Operating points chosen on val miss their goal: {listed(short, numbers)}.",
        classes,
    )


def baseline(scores: Scores) -> Harm | None:
    """The network is no better than a trivial prediction that looks at no image."""
    trivial = scores.get("baseline") or {}
    if "answer" in trivial:
        gain, answer = trivial["gains"].get("accuracy") or {}, trivial["answer"]
        if gain.get("value") is None or (gain["value"] if gain["low"] is None else gain["low"]) > 0:
            return None
        accuracy, by_answer = wording.interval(scores["overall"]["accuracy"]), trivial["overall"]["accuracy"]
        how = "is not above" if gain["value"] <= 0 else "is not shown to be above"
        return Harm(
            "baseline",
            f"accuracy {how} always predicting {answer}",
            f"The accuracy, {accuracy}, {how} that of always predicting {answer}, {by_answer:.3f}: "
            f"the difference is {wording.difference(gain)}.",
        )
    calibrated = (scores.get("calibration") or {}).get("classes", {})
    every = {
        name: gain_of_class["log_loss"]
        for name, gain_of_class in trivial.get("gains", {}).items()
        if name not in calibrated
    }
    names = [name for name, gain in every.items() if (high := stretched(gain, len(every))[1]) is not None and high < 0]
    if not names:
        return None

    def numbers(name: str) -> str:
        by_share = trivial["classes"][name]["log_loss"]
        return f"{name} {wording.interval(scores['classes'][name]['log_loss'])} against {by_share:.3f}"

    return Harm(
        "baseline",
        f"probabilities{of_classes(names)} are worse than the share of positives",
        "The log loss is above that of giving every image the share of positives as its probability: "
        f"{listed(names, numbers)}. Images may still be ranked well.",
        names,
    )


def never_found(scores: Scores) -> Harm | None:
    """Classes of which no image is found: multiclass by the most probable class; multilabel at a threshold fitted for
    the class, or else at the threshold of the table of scores."""
    thresholds = {} if scores.get("kind") == "multiclass" else scores.get("operating_points") or {}
    operating_points = [(f" at {name}", point["classes"]) for name, point in thresholds.items()]
    lost: dict[str, str] = {}
    never_predicted = set()
    for name, of_class in scores.get("classes", {}).items():
        decisions = [(where, values[name]) for where, values in operating_points if name in values]
        for where, values in decisions or [("", of_class)]:
            high = values["sensitivity"]["high"]
            if values["sensitivity"]["value"] == 0 and high is not None and high < HALF:
                lost.setdefault(name, f"{name}{where} (0 of {of_class['positives']})")
                if values["ppv"]["value"] is None:
                    never_predicted.add(name)
    if not lost:
        return None
    never = [name for name in lost if name in never_predicted]
    other = [name for name in lost if name not in never_predicted]
    parts = [
        f"{words}: {listed(names, lost.__getitem__)}"
        for words, names in (("Never predicted", never), ("Predicted, but never correctly", other))
        if names
    ]
    return Harm("never found", f"never found: {', '.join(lost)}", ". ".join(parts) + ".", list(lost))


def val_and_test(val: Scores, test: Scores, split: str = "test") -> Harm | None:
    """The same score on val and on test, with intervals that do not overlap. The macro AUROC is compared where the same
    classes have one on both. Val chose the epoch, so val may be slightly better."""
    pairs = {}
    defined = [
        [name for name, of_class in s.get("classes", {}).items() if of_class["auroc"]["value"] is not None]
        for s in (val, test)
    ]
    if defined[0] == defined[1]:
        name = "macro AUROC" if len(defined[0]) > 1 else "AUROC"
        pairs[name] = [s.get("macro", {}).get("auroc") for s in (val, test)]
    pairs["accuracy"] = [s.get("overall", {}).get("accuracy") for s in (val, test)]
    apart = []
    for name, (a, b) in pairs.items():
        if a and b and None not in (a["low"], b["low"]) and (a["low"] > b["high"] or b["low"] > a["high"]):
            apart.append(f"{name} {wording.interval(a)} on val, {wording.interval(b)} on {split}")
    if not apart:
        return None
    return Harm(
        "val and test",
        f"val and {split} disagree",
        f"Val and {split} differ by more than chance: {'; '.join(apart)}. What was fitted on val may not hold here.",
    )


def falls_short(share: Scores, promised: float, looks: int, fitted_on: float) -> bool:
    """Whether a share is below what was promised: beyond the chance of this split and of the patients that the
    threshold was fitted on, and with MISSES times as many misses."""
    high = stretched(share, looks)[1]
    if high is None or 1 - share["value"] < MISSES * (1 - promised):
        return False
    by_val = 0.0
    if fitted_on < float(
        "inf"
    ):  # the threshold is an order statistic, above which the share of new images is beta distributed
        n = fitted_on + 1
        by_val = promised - float(scipy.stats.beta.ppf(tail(looks), promised * n, (1 - promised) * n))
    return bool(promised - share["value"] > ((high - share["value"]) ** 2 + by_val**2) ** 0.5)


def fitted_on(scores: Scores, val: Scores | None, name: str, side: str) -> float:
    """Patients of val behind what was fitted to one side (positives, negatives, images) of a class. Without the scores
    of val they are estimated from the shares of this split; infinite where nothing is known."""
    if val is not None:
        return max(val["patients"] if side == "images" else val["classes"][name][f"{side[:-1]}_patients"], 1)
    about = [(scores.get(key) or {}).get("fitted_on") or {} for key in ("conformal", "calibration")]
    patients = next((source["patients"] for source in about if source.get("patients")), float("inf"))
    if side == "images":
        return float(patients)
    counts = scores["classes"][name]
    return max(patients * counts[side] / max(counts["positives"] + counts["negatives"], 1), 1.0)


def stretched(score: Scores, looks: int) -> tuple[float | None, float | None]:
    """The limits of a score at a level corrected for `looks` comparisons; None where it has none."""
    if score.get("value") is None or score.get("low") is None or score.get("high") is None:
        return None, None
    value, by = score["value"], quantile(looks) / quantile(1)
    return value + by * (score["low"] - value), value + by * (score["high"] - value)


def quantile(looks: int) -> float:
    """Standard errors from a value to its limits, at a level corrected for `looks` comparisons."""
    return float(-scipy.stats.norm.ppf(tail(looks)))


def tail(looks: int) -> float:
    """The probability beyond one limit, at a level corrected for `looks` comparisons."""
    return (1 - LEVEL) / (2 * max(looks, 1))


def of_classes(names: list[str]) -> str:
    """` of a, b`, empty where all classes together are meant."""
    named = [name for name in names if name]
    rest = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f" of {', '.join(named[:MAX_NAMED])}{rest}" if named else ""


def listed(keys: list[Any], words: Callable[[Any], str]) -> str:
    """The words of the first few, and how many more there are."""
    rest = f"; and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return "; ".join(words(key) for key in keys[:MAX_NAMED]) + rest
