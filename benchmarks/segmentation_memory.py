"""Peak memory of an evaluation of masks over the number of images: it should not grow with them.

    python -m benchmarks.segmentation_memory [--images 1000 10000] [--side 512]   (a section of RESULTS.md)

Each number of images is evaluated in a process of its own by the functions of `job=evaluate task=segment
predictions=FOLDER labels=FOLDER`: `score_folders`, the case table as a file, the scores. The PNGs are 20 pairs of
ellipses, repeated under other names as hard links. Memory is the peak resident set of the process (getrusage); its
value after the imports, before the first mask, stands beside it, and what the case table needs: its frame, its file.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

POOL = 20
REGIONS = ["background", "lung", "heart"]


def draw(folder: Path, side: int) -> None:
    """`POOL` pairs of masks: two ellipses as the truth, the same moved and with a rough border as the prediction."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for part in ("labels", "predictions"):
        (folder / part).mkdir(parents=True)
    for i in range(POOL):
        centres = rng.uniform(0.3, 0.7, (2, 2))
        radii = rng.uniform(0.1, 0.25, (2, 2))
        for part, shift, rough in (("labels", 0.0, 0.0), ("predictions", 0.02, 0.15)):
            mask = np.zeros((side, side), np.uint8)
            for region, ((cy, cx), (ry, rx)) in enumerate(zip(centres, radii, strict=True), start=1):
                distance = ((y - cy - shift) / ry) ** 2 + ((x - cx - shift) / rx) ** 2
                mask[distance + rng.normal(0, rough + 1e-9, distance.shape) < 1] = region
            Image.fromarray(mask).save(folder / part / f"{i:02d}.png")


def linked(pool: Path, folder: Path, images: int) -> None:
    """That many pairs of masks, as hard links to those of the pool."""
    for part in ("labels", "predictions"):
        (folder / part).mkdir(parents=True)
        for i in range(images):
            os.link(pool / part / f"{i % POOL:02d}.png", folder / part / f"image_{i:06d}.png")


def peak() -> float:
    """MiB of the largest resident set so far."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / (2**20 if sys.platform == "darwin" else 2**10)


def evaluate(folder: Path) -> dict[str, float]:
    """Evaluate the masks of a folder: peaks in MiB and seconds."""
    from finetune.evaluation.segmentation.assessment import SegmentationAssessment, SegmentationFit
    from finetune.evaluation.segmentation.folders import score_folders

    start, began = peak(), time.perf_counter()
    cases = score_folders(folder / "predictions", folder / "labels", REGIONS)
    collected, took = peak(), time.perf_counter() - began
    path = cases.write(folder / "predictions_test.csv")
    written = peak()
    scores = SegmentationAssessment().score(cases, SegmentationFit())
    assert scores["n"] == len(cases)
    return {
        "images": len(cases),
        "start": start,
        "collected": collected,
        "written": written,
        "peak": peak(),
        "frame": float(cases.frame.memory_usage(deep=True).sum()) / 2**20,
        "file": path.stat().st_size / 2**20,
        "seconds": took,
        "dice": scores["macro"]["dice"]["value"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the process that is measured
    given = parser.parse_args()
    if given.folder:
        print(json.dumps(evaluate(given.folder)))
        return
    results = []
    with tempfile.TemporaryDirectory() as place:
        pool = Path(place, "pool")
        draw(pool, given.side)
        for images in given.images:
            folder = Path(place, str(images))
            linked(pool, folder, images)
            words = [sys.executable, "-m", "benchmarks.segmentation_memory", "--folder", str(folder)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], flush=True)
    report(results, given.side)


def report(results: list[dict[str, float]], side: int) -> None:
    """The section of RESULTS.md."""
    from benchmarks.results import machine, write_section

    first = results[0]
    heads = ("images", "peak, MiB (over the first)", "before the first mask", "frame, file of the table, MiB", "time")
    rows = [f"| {' | '.join((*heads, 'per image'))} |"]
    rows.append("|---|---|---|---|---|---|")
    for row in results:
        rows.append(
            f"| {row['images']:,} | {row['peak']:.0f} ({row['peak'] / first['peak']:.2f}) | {row['start']:.0f} | "
            f"{row['frame']:.1f}, {row['file']:.1f} | {row['seconds']:.0f} s | "
            f"{1000 * row['seconds'] / row['images']:.1f} ms |"
        )
    head = (
        f"`python -m benchmarks.segmentation_memory`: masks of {side} px with two regions, scored with their surface "
        f"distances; {machine()}.\n\n"
    )
    last = results[-1]
    more = last["images"] - first["images"]
    growth, of_table = (1024 * (last[name] - first[name]) / more if more else 0.0 for name in ("peak", "frame"))
    foot = (
        f"\n\nEach further image takes {growth:.1f} KiB, of which {of_table:.1f} KiB are the case table's frame; the "
        f"rest was not broken down. A mask has {side * side // 1024} KiB. One process per row, measured once."
    )
    write_section("Evaluation of masks, memory", head + "\n".join(rows) + foot)


if __name__ == "__main__":
    main()
