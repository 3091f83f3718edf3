"""Numbers and facts of a run as text for its report."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from finetune.evaluation.metrics import metric as entry

WITHIN_TEXT = re.compile(r"(?:^|(?<=[\s='\"(\[,]))(?:~|[A-Za-z]:)?[\\/][\w.~][^\s'\",;)\]]*")

KINDS = {"missed": "False negative (missed)", "false alarm": "False positive (false alarm)"}
SAME_SEED = (
    "The same seed gives the same weights to the last bit only with the same versions, processor, and numbers of "
    "threads and processes. Elsewhere sums are rounded in another order, and the scores differ about as much as "
    "those of two seeds."
)
DEBUG = "DEBUG run: it tries the program on a few batches; its scores say nothing about the network."


def number(value: float | None, digits: int = 3) -> str:
    """Three decimals, or a dash where there is nothing."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(score: Mapping[str, Any] | None, digits: int = 3) -> str:
    """0.812 (0.775–0.846); a dash where there is no such score."""
    if not score:
        return number(None)
    if score.get("value") is None:
        return "undefined"
    if score.get("low") is None or score.get("high") is None:
        return number(score["value"], digits)
    return f"{score['value']:.{digits}f} ({score['low']:.{digits}f}–{score['high']:.{digits}f})"


def percent(score: Mapping[str, Any]) -> str:
    """25.5 % (20.4–31.4)"""
    value = f"{100 * score['value']:.1f} %"
    if score.get("low") is None or score.get("high") is None:
        return value
    return f"{value} ({100 * score['low']:.1f}–{100 * score['high']:.1f})"


def baseline(scores: Mapping[str, Any], group: str, metric: str) -> str:
    """The score of a trivial prediction: `always nv: 0.637`, `chance: 0.143`; empty where it is unknown."""
    trivial = scores.get("baseline") or {}
    value = (trivial.get(group) or {}).get(metric)
    if value is None:
        return ""
    return f"always {trivial['answer']}: {value:.3f}" if metric == "accuracy" else f"chance: {value:.3f}"


def gap(gap_scores: Mapping[str, Any], title: str) -> str:
    """The worst group, the gap, and whether it is beyond chance."""
    low, pairs = gap_scores.get("low"), gap_scores["pairs"]
    width = difference(gap_scores).lstrip("+")
    sentence = f"Worst is {gap_scores['worst']}, best {gap_scores['best']}: a gap in {title} of {width}"
    if pairs > 1:
        sentence += f", allowing for the {pairs} pairs of groups"
    return sentence + ("." if low is None else ", more than chance." if low > 0 else ", which chance alone can make.")


def error(wrong: Mapping[str, Any]) -> str:
    """A wrong prediction as text: `False negative (missed): Hernia (probability 0.02)`, `cat taken for dog (0.97)`."""
    probability = number(wrong.get("probability"), 2)
    if "answer" in wrong:
        return f"{wrong['true']} taken for {wrong['answer']} ({probability})"
    kind = str(wrong.get("kind", "wrong"))
    return f"{KINDS.get(kind, kind)}: {wrong.get('class')} (probability {probability})"


def undefined(metric: str, counts: Mapping[str, Any]) -> str:
    """Why the score of a class is undefined: `undefined (no positives)`."""
    why = why_undefined(metric, counts)
    return f"undefined ({why})" if why else "undefined"


def why_undefined(metric: str, counts: Mapping[str, Any]) -> str:
    """The reason why a score is undefined for these numbers of `positives` and `negatives`."""
    positives, negatives = counts.get("positives", 0), counts.get("negatives", 0)
    if not positives and not negatives:
        return "nothing known"
    lacking = [labels for labels in entry(metric).needs if not counts.get(labels, 0)]
    return f"no {lacking[0]}" if lacking else entry(metric).undefined


def difference(score: Mapping[str, Any] | None, digits: int = 3) -> str:
    """+0.031 (-0.002 to +0.064)"""
    if not score or score.get("value") is None:
        return "undefined"
    if score.get("low") is None or score.get("high") is None:
        return f"{score['value']:+.{digits}f}"
    return f"{score['value']:+.{digits}f} ({score['low']:+.{digits}f} to {score['high']:+.{digits}f})"


def in_words(score: Mapping[str, Any]) -> str:
    """0.81 (95 % interval 0.78 to 0.85), without the interval where there is none."""
    if score.get("low") is None or score.get("high") is None:
        return number(score["value"])
    return f"{score['value']:.3f} (95 % interval {score['low']:.3f} to {score['high']:.3f})"


def mean_count(n: float) -> str:
    """1,204, or 28.5 where it is a mean over seeds"""
    return f"{n:,.1f}".removesuffix(".0")


def counted(n: int, noun: str, several: str | None = None) -> str:
    """1 image, 1,200 images"""
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"


def what_was_run(backbone: str | None, data: str, splits: list[dict[str, Any]], has_patients: bool) -> str:
    """resnet50, fine-tuned on chestxray: train 1,600 images of 800 patients, ..."""
    parts = []
    for split in splits:
        people = f" of {split['patients']:,} patients" if has_patients and split.get("patients") else ""
        parts.append(f"{split['name']} {split.get('images') or 0:,} images{people}")
    return f"{backbone or 'A network'}, fine-tuned on {data}" + (f": {', '.join(parts)}." if parts else ".")


def what_was_evaluated(
    model: Mapping[str, Any], data: str, split: str, scores: Mapping[str, Any], has_patients: bool
) -> str:
    """resnet50 of chestxray, evaluated on all of nih: 650 images of 248 patients."""
    network = model.get("backbone")
    what = f"{network}, fine-tuned on {model.get('data') or 'other data'}," if network else "A table of probabilities,"
    where = data if not network else f"all of {data}" if split == "all" else f"the {split} split of {data}"
    people = f" of {scores['patients']:,} patients" if has_patients and "patients" in scores else ""
    return f"{what} evaluated on {where}: {scores.get('n', 0):,} images{people}."


def read_by_evaluation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that job=evaluate reads; those of network and training are taken from the model."""
    from_table = ("job", "predictions", "labels", "image", "label", "patient", "evaluation", "seed")
    from_model = ("job", "model", "split", "prevalence", "data", "evaluation", "trainer", "seed")
    keys = from_table if config.get("predictions") else from_model
    return {key: config[key] for key in keys if key in config}


def evaluated_on(scores: Mapping[str, Any], split: str, has_patients: bool) -> str:
    """On the test split (400 images of 180 patients)"""
    images = f"{scores['n']:,} images" if "n" in scores else "the images"
    people = f" of {scores['patients']:,} patients" if has_patients and "patients" in scores else ""
    where = "On all images of these data" if split == "all" else f"On the {split} split"
    return f"{where} ({images}{people})"


def verdict(scores: Mapping[str, Any], split: str, has_patients: bool = True) -> list[str]:
    """The result in a few sentences, the most important first: what speaks against the run, then its scores, compared
    with those of a trivial prediction."""
    macro = scores.get("macro", {}).get("auroc") or {}
    classes = scores.get("classes", {})
    on = evaluated_on(scores, split, has_patients)
    overall, trivial = scores.get("overall", {}), (scores.get("baseline") or {}).get("overall", {})
    accuracy, recall = (overall.get(metric) or {} for metric in ("accuracy", "balanced_accuracy"))
    harm = [harm["short"] for harm in scores.get("harms", [])]
    first = [f"Before use: {'; '.join(harm)}."] if harm else []
    sentences = []
    if accuracy.get("value") is not None:
        sentences.append(f"{on} the accuracy is {in_words(accuracy)}.")
        if trivial:
            answer = scores["baseline"]["answer"]
            sentences[-1] = f"{sentences[-1][:-1]}; always predicting {answer} gives {trivial['accuracy']:.3f}."
        if recall.get("value") is not None and trivial:
            sentences.append(
                f"The balanced accuracy, the mean recall of the classes, is {in_words(recall)}; chance gives "
                f"{trivial['balanced_accuracy']:.3f}."
            )
    if macro.get("value") is None:
        return [*first, *sentences, f"{on} no class has a defined AUROC."]
    defined = {name: c["auroc"]["value"] for name, c in classes.items() if c["auroc"]["value"] is not None}
    over = f", the mean over {len(defined)} of {len(classes)} classes" if len(classes) > 1 else ""
    name = "macro AUROC" if len(classes) > 1 else "AUROC"
    where = "The" if sentences else f"{on} the"
    sentences.append(f"{where} {name} is {in_words(macro)}{over}.")
    if macro.get("low") is not None and macro["low"] <= 0.5 <= macro["high"]:
        sentences.append("This is not distinguishable from guessing, which gives 0.5.")
    elif macro["value"] < 0.5:
        sentences.append("This is worse than guessing, which gives 0.5: check whether labels are inverted.")
    enough_patients = [
        name for name in defined if "note" not in classes[name]
    ]  # few patients may be best or worst by chance
    lost = {name for harm in scores.get("harms", []) if harm["rule"] == "never found" for name in harm["classes"]}
    candidates = [
        name for name in enough_patients if name not in lost
    ]  # a class ranked well but never found is not a strength
    if len(enough_patients) > 1 and len(classes) > 2 and candidates:
        best, worst = max(candidates, key=lambda c: defined[c]), min(enough_patients, key=lambda c: defined[c])
        sentences.append(
            f"The highest AUROC is that of {best}, {interval(classes[best]['auroc'])}, the lowest that of {worst}, "
            f"{interval(classes[worst]['auroc'])}."
        )
    guessed = [c for c in defined if (low := classes[c]["auroc"]["low"]) is None or low <= 0.5]
    if guessed and len(classes) > 1:
        sentences.append(f"Not shown to be better than guessing: {', '.join(guessed)}.")
    return [*first, *sentences]


def most_confused(counts: np.ndarray, classes: list[str], limit: int = 8) -> list[str]:
    """The largest numbers off the diagonal: the true class taken for the predicted one."""
    counts = np.asarray(counts)
    wrong = counts - np.diag(np.diag(counts))
    order = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:limit] if wrong.flat[i] > 0]
    pairs = []
    for row, column in (divmod(int(i), len(classes)) for i in order):
        n, total = int(wrong[row, column]), int(counts[row].sum())
        pairs.append(f"{classes[row]} taken for {classes[column]}: {n:,} of {total:,} ({100 * n / total:.1f} %)")
    return pairs


def shortened(text: str) -> str:
    """`text` with absolute paths shortened to their last name: reports are shared, and folders may name people."""
    return WITHIN_TEXT.sub(lambda match: last_name(match[0]), text)


def last_name(path: str) -> str:
    """…/name of an absolute path; anything else as it is."""
    kind = PureWindowsPath if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath
    absolute = kind(path).is_absolute() or path.startswith("~")
    return f"…/{kind(path).name}" if absolute and kind(path).name else path


def shortened_command(command: str) -> str:
    """A command line with the absolute paths among its values shortened, those with spaces too."""
    try:
        words = shlex.split(command)
    except ValueError:
        return shortened(command)
    shortened_words = []
    for word in words:
        key, sign, value = word.partition("=")
        shortened_words.append(key + sign + last_name(value) if sign else last_name(word))
    return " ".join(
        shortened(word if re.fullmatch(r"[^\s'\"$&|;<>()*]*", word) else shlex.quote(word)) for word in shortened_words
    )


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted names with values; unset values are left out, paths are shortened."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= settings(value, f"{name}.")
        elif isinstance(value, str):
            flat[name] = shortened(last_name(value))
        elif isinstance(value, list):
            flat[name] = "[" + ", ".join(shortened(last_name(str(item))) for item in value) + "]"
        elif value is not None:
            flat[name] = str(value)
    return flat
