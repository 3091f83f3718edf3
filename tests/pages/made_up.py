"""Run folders of masks and boxes with made-up scores, as far as a report reads them."""

import json

import numpy as np

from finetune import drawing
from finetune.files import write_json_atomic
from finetune.pages.cases import Case, Cases, ranked
from tests.evaluation.runs import write_run

REGIONS = ["left lung", "right lung", "Opacity of the right upper lobe", "heart"]
FINDINGS = ["mass", "nodule", "Pleural effusion or thickening", "fracture"]


def score(value, reach=0.04, **more):
    return {"value": value, "low": value - reach, "high": value + reach, **more}


def undefined(reason):
    return {"value": None, "low": None, "high": None, "reason": reason}


def run_of(folder, task, scores, cases=None):
    """All files of a run, its scores and cases replaced."""
    write_run(folder, n=40, n_boot=0)
    for path in folder.glob("predictions_*.csv"):
        path.unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"{config}task: {{name: {task}}}\n")
    audit = json.loads((folder / "audit.json").read_text())
    for counts in audit["counts"].values():
        counts["classes"] = {}
    write_json_atomic(folder / "audit.json", {**audit, "warnings": []})
    write_json_atomic(folder / "scores.json", scores)
    if cases is not None:
        cases.write(folder / "cases.json")
    return folder


def groups(head, beside):
    """Two hospitals, one beyond chance below the other."""
    of_groups = {
        name: {
            "n": 100,
            "patients": 50,
            "macro": {head: score(value), **{other: score(value - 0.05) for other in beside}},
            "classes": {"a": {}, "b": {}},
            "compared": {head: score(value)},
        }
        for name, value in (("A university hospital in the south", 0.6), ("north", 0.8))
    }
    gap = {"worst": "A university hospital in the south", "best": "north", **score(0.2, 0.1), "pairs": 1}
    gaps = {"overall": {}, "macro": {head: {**gap, "classes": ["a", "b"]}}, "classes": {}}
    return {"site": {"groups": of_groups, "gaps": gaps}}


def segment_scores():
    """Four regions, of which one is small and badly found, and one in no image."""
    values = dict(zip(REGIONS, (0.95, 0.93, 0.41, None), strict=True))
    classes = {}
    for name, value in values.items():
        if value is None:
            missing = ("dice", "iou", "sensitivity", "precision", "assd", "hd95")
            classes[name] = {**{metric: undefined("in no image") for metric in missing}, "n": 0}
            continue
        overlaps = {"dice": value, "iou": value / (2 - value), "sensitivity": value, "precision": value - 0.02}
        distances = {"assd": 3 - 2 * value, "hd95": 20 - 18 * value}
        classes[name] = {
            **{metric: score(number) for metric, number in overlaps.items()},
            **{metric: score(number, 0.5) for metric, number in distances.items()},
            "n": 200,
        }
    classes[REGIONS[2]] |= {"note": "fewer than 10 patients with it"}
    macro = {metric: score(0.763) for metric in ("dice", "iou", "sensitivity", "precision")}
    macro |= {"assd": score(1.5, 0.3), "hd95": score(6.25, 2.0)}
    matrix = [[9000, 60, 60, 80, 0], [50, 2900, 0, 0, 0], [70, 0, 2800, 0, 0], [200, 0, 150, 250, 0], [0, 0, 0, 0, 0]]
    test = {
        "kind": "segmentation",
        "n": 200,
        "patients": 90,
        "unit": "mm",
        "macro": macro,
        "classes": classes,
        "baseline": {"macro": {"dice": 0.52}},
        "confusion": {"classes": ["background", *REGIONS], "counts": matrix},
        "subgroups": groups("dice", ("iou", "sensitivity", "precision")),
        "warnings": ["heart is in no image."],
        "harms": [{"rule": "never found", "short": "Opacity is often missed", "text": "It is missed in 40 images."}],
        "notes": [],
    }
    val = {"kind": "segmentation", "n": 100, "patients": 45, "macro": {"dice": score(0.9)}, "classes": {}}
    return {"val": val, "test": test}


def pictures(number):
    """An image with a disc, and the same with the outlines of two discs."""
    y, x = np.mgrid[:48, :48]
    image = np.clip(40 + 3 * x + 2 * y, 0, 255).astype(np.uint8)
    truth = (x - 20) ** 2 + (y - 22) ** 2 < 120
    prediction = (x - 20 - number) ** 2 + (y - 22) ** 2 < 120
    overlay = drawing.with_masks(image, truth, prediction, side=128)
    return drawing.jpeg(image, 128), drawing.jpeg(overlay, 128)


def cases_of(metric, names, false_positives=False):
    rng = np.random.default_rng(0)
    values = {name: rng.beta(8 - k, 2, 60).round(3).tolist() for k, name in enumerate(names[:-1])}
    values[names[-1]] = [None] * 60
    sizes = {name: (10 ** rng.uniform(1, 4, 60)).round().tolist() for name in names[:-1]}
    first = values[names[0]]
    shown = []
    for number, rank in ranked(first):
        image, overlay = pictures(number % 9)
        of_classes = {name: values[name][number] for name in names}
        about = f"images/{number}_of_a_long_name_without_any_break_in_it.png", f"p{number}"
        shown.append(Case(*about, rank, first[number], image, overlay, of_classes))
    counts = rng.poisson(1.2, 60).tolist() if false_positives else []
    return Cases(metric, shown, values, sizes, false_positives=counts)


def write_segment_run(folder):
    return run_of(folder, "segment", segment_scores(), cases_of("dice", REGIONS))


def detect_scores():
    """Four classes, one without true boxes."""
    classes = {}
    for name, value in zip(FINDINGS, (0.62, 0.35, 0.08, None), strict=True):
        if value is None:
            of_class = {metric: undefined("no true boxes") for metric in ("ap50", "ap", "ap75", "froc")}
            classes[name] = {**of_class, "truths": 0, "detections": 12, "images_with": 0, "patients_with": 0}
            continue
        of_class = {"ap50": score(value), "ap": score(value / 2), "ap75": score(value / 3), "froc": score(value + 0.1)}
        counts = {"truths": 1200, "detections": 4100, "images_with": 800, "patients_with": 300}
        classes[name] = {**of_class, "sensitivity_at_2_fp": score(value + 0.2), **counts}
    grid = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    rising = [0.2, 0.3, 0.42, 0.5, 0.6, 0.66, 0.7]
    band = {"sensitivity": rising, "low": [v - 0.05 for v in rising], "high": [v + 0.05 for v in rising]}
    of_class = {name: {**band, "sensitivity": [v - 0.02 * k for v in rising]} for k, name in enumerate(FINDINGS[:3])}
    of_point = {
        "sensitivity": score(0.6),
        "false_positives": score(1.02, 0.2),
        "ppv": score(0.3),
        **{"tp": 720, "fp": 1680, "fn": 480},
    }
    points = {
        name: {
            "criterion": criterion,
            "all": of_point,
            "classes": {c: {"threshold": 0.31, **of_point} for c in FINDINGS[:3]},
        }
        for name, criterion in (("one", "1 false positive per image"), ("two", "2 false positives per image"))
    }
    test = {
        "kind": "detection",
        "n": 400,
        "patients": 180,
        "macro": {"ap50": score(0.35), "ap": score(0.175), "ap75": score(0.117), "froc": score(0.45)},
        "classes": classes,
        "baseline": {"macro": {"ap50": 0.02, "froc": 0.05}},
        "operating_points": points,
        "froc_curve": {"false_positives": grid, "macro": band, "classes": of_class},
        "image_level": {"any": {"auroc": score(0.88)}},
        "subgroups": groups("ap50", ("froc",)),
        "warnings": ["No true boxes, so every score is undefined and left out of the mean: fracture."],
        "harms": [],
        "notes": [],
    }
    return {"test": test}


def write_detect_run(folder):
    return run_of(folder, "detect", detect_scores(), cases_of("sensitivity", FINDINGS, false_positives=True))
