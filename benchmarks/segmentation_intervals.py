"""How often the 95 % intervals of scores of masks hold the truth in simulated worlds; writes SEGMENTATION_INTERVALS.md.

python benchmarks/segmentation_intervals.py [--worlds 1000]
"""

import argparse
import textwrap
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t

from finetune.statistics import intervals, means
from finetune.statistics.intervals import Interval

RESAMPLES = 400
PATIENTS = (30, 50, 100)
MEANS = ("percentile, patients drawn", "t on patients' means", "t, linearised", "t, jackknife", "**reported**")
MEDIANS = ("percentile, patients drawn", "**reported**")
DISTANCES = ("percentile, patients drawn", "t, jackknife", "**reported**")


@dataclass(frozen=True)
class World:
    """Images whose Dice is alike within a patient."""

    name: str
    level: float
    """Log odds of the Dice of a patient in the middle."""
    between: float
    """Standard deviation between patients, in log odds."""
    within: float
    """The same between images of a patient."""
    failures: float = 0.0
    """Share of images with a Dice of 0."""
    more: bool = False
    """Whether patients of low Dice have more images."""
    several: bool = True
    """3.3 images per patient on average, else one."""

    def draw(self, rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray]:
        """Dice and patient of each image."""
        level = rng.normal(size=patients)
        number = rng.geometric(0.3, patients) if self.several else np.ones(patients, int)
        if self.more:
            number = number + (level < 0) * rng.poisson(2, patients)
        patient = np.repeat(np.arange(patients), number)
        noise = rng.normal(size=len(patient))
        dice = expit(self.level + self.between * level[patient] + self.within * noise)
        return np.where(rng.random(len(patient)) < self.failures, 0.0, dice), patient


WORLDS = [
    World("Dice 0.87", 2.2, 0.7, 0.7),
    World("Dice 0.87, more images of hard patients", 2.2, 0.7, 0.7, more=True),
    World("Dice 0.82, 5 % of images lost", 2.2, 0.7, 0.7, failures=0.05),
    World("Dice 0.81, 5 % lost, more of hard patients", 2.2, 0.7, 0.7, failures=0.05, more=True),
    World("Dice 0.94", 3.0, 0.5, 0.5),
    World("Dice 0.90, 5 % of images lost", 3.0, 0.5, 0.5, failures=0.05),
    World("Dice 0.50", 0.0, 1.0, 1.0),
    World("Dice 0.87, one image per patient", 2.2, 0.7, 0.7, several=False),
    World("Dice 0.82, 5 % lost, one image per patient", 2.2, 0.7, 0.7, failures=0.05, several=False),
    World("Dice 0.90, 5 % lost, one image per patient", 3.0, 0.5, 0.5, failures=0.05, several=False),
]


def distances(dice: np.ndarray) -> np.ndarray:
    """Surface distances that are long where the Dice is low; NaN where the region is lost."""
    return np.where(dice > 0, np.exp(-logit(np.clip(dice, 1e-3, 1 - 1e-6))) * 10, np.nan)


def students(value: float, error: float, df: float) -> Interval:
    reach = float(t.ppf(0.975, df)) * error
    return Interval(value, value - reach, value + reach)


def of_mean(values: np.ndarray, patient: np.ndarray, n: int, weight: np.ndarray) -> dict[str, Interval]:
    """Each method's interval of the mean over images; `weight` (B, P) are resamples of the patients."""
    mean = means.mean(values, patient, n)
    defined = ~np.isnan(values)
    total = np.bincount(patient[defined], values[defined], n)
    number = np.bincount(patient[defined], minlength=n).astype(float)
    drawn = (weight @ total) / (weight @ number)
    of_patient = total[number > 0] / number[number > 0]
    linear = intervals.mean_difference(total, number)
    return {
        "percentile, patients drawn": intervals.percentile(mean.value, drawn),
        "t on patients' means": students(
            of_patient.mean(), of_patient.std(ddof=1) / len(of_patient) ** 0.5, len(of_patient) - 1
        ),
        "t, linearised": linear,
        "t, jackknife": students(mean.value, mean.error, n - 1),
        "**reported**": mean.between_0_and_1() if values[defined].max() <= 1 else mean.above_0(),
    }


def of_median(values: np.ndarray, patient: np.ndarray, weight: np.ndarray) -> dict[str, Interval]:
    """The same of the median."""
    order = np.argsort(values)
    so_far = np.cumsum(weight[:, patient[order]], axis=1)
    drawn = values[order][(so_far >= so_far[:, -1:] / 2).argmax(axis=1)]
    interval = means.median(values, patient)
    return {"percentile, patients drawn": intervals.percentile(interval.value, drawn), "**reported**": interval}


def row(
    worlds: int, patients: int, truth: float, one: Callable[[np.random.Generator], dict[str, Interval]]
) -> dict[str, float]:
    """Method -> percentage of the worlds whose interval holds the truth."""
    rng, held = np.random.default_rng(patients), defaultdict(list)
    for _ in range(worlds):
        for method, interval in one(rng).items():
            if not np.isnan(interval.low):  # no interval makes no claim
                held[method].append(interval.low <= truth <= interval.high)
    return {method: 100 * float(np.mean(values)) for method, values in held.items()}


def macro(worlds: int, patients: int) -> float:
    """Mean over three regions of the same images, one of which half of the patients have."""
    world = WORLDS[2]

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        dice, patient = world.draw(rng, n)
        alike = np.stack([dice, np.clip(dice + rng.normal(0, 0.05, len(dice)), 0, 1), dice**2], axis=1)
        alike[(rng.random(n) < 0.5)[patient], 2] = np.nan
        return alike, patient

    truth = means.mean(*draw(np.random.default_rng(0), 200_000), 200_000).value

    def one(rng: np.random.Generator) -> dict[str, Interval]:
        values, patient = draw(rng, patients)
        return {"**reported**": means.mean(values, patient, patients).between_0_and_1()}

    return row(worlds, patients, truth, one)["**reported**"]


def table(title: str, methods: tuple[str, ...], rows: list[tuple[str, int, dict[str, float]]]) -> list[str]:
    return [
        f"## {title}",
        "",
        "| world | patients |" + "".join(f" {method} |" for method in methods),
        "|" + " --- |" * (2 + len(methods)),
        *(f"| {name} | {n} |" + "".join(f" {held[m]:.1f} |" for m in methods) for name, n, held in rows),
        "",
    ]


def wrapped(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), 110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    worlds = parser.parse_args().worlds
    of_means, of_medians, of_distances = [], [], []
    for world in WORLDS:
        large, _ = world.draw(np.random.default_rng(0), 300_000)
        far = distances(large)
        for n in PATIENTS:

            def weight(rng: np.random.Generator, n: int = n) -> np.ndarray:
                return rng.multinomial(n, np.ones(n) / n, size=RESAMPLES).astype(float)

            def mean(rng: np.random.Generator, world: World = world, n: int = n) -> dict[str, Interval]:
                return of_mean(*world.draw(rng, n), n, weight(rng))

            def median(rng: np.random.Generator, world: World = world, n: int = n) -> dict[str, Interval]:
                return of_median(*world.draw(rng, n), weight(rng))

            def distance(rng: np.random.Generator, world: World = world, n: int = n) -> dict[str, Interval]:
                dice, patient = world.draw(rng, n)
                return of_mean(distances(dice), patient, n, weight(rng))

            of_means.append((world.name, n, row(worlds, n, float(large.mean()), mean)))
            if n != PATIENTS[1]:
                of_medians.append((world.name, n, row(worlds // 2, n, float(np.median(large)), median)))
                of_distances.append((world.name, n, row(worlds // 2, n, float(np.nanmean(far)), distance)))
            print(*of_means[-1], flush=True)
    error = 100 * np.sqrt(0.95 * 0.05 / worlds)
    several = [held["**reported**"] for name, _, held in of_means if "one image" not in name]
    alone = [held["**reported**"] for name, _, held in of_means if "one image" in name]
    how = f"""`python benchmarks/segmentation_intervals.py --worlds {worlds}` writes this file. Each number is the
        percentage of {worlds:,} simulated worlds (medians and distances: {worlds // 2:,}) whose 95 % interval
        holds the true value: 95 is right, {error:.1f} is the standard error of the simulation. The Dice of a
        patient's images is alike; a patient has 3.3 images on average, or one. The truth is the mean over
        images. Bold is what finetune reports: means by the jackknife over patients, Student's t for as many
        patients as those of unequal size are worth, on the logit scale (distances: the scale of the logarithm);
        medians by Woodruff's method."""
    result = f"""The reported interval of the mean Dice holds the truth in {min(several):.1f} to {max(several):.1f} % of
        the worlds with several images per patient, and in {min(alone):.1f} to {max(alone):.1f} % of those with
        one. Where 5 % of the images are lost and 30 patients have one image each, a fifth of the worlds has no
        lost image at all: nothing in such data shows that images can be lost, and no interval of the mean
        accounts for it. t on patients' means is an interval of another mean, in which patients with many images
        count no more than others."""
    tails = """Distances have long tails: the mean of few patients is often too small, and so is its spread. The median
        is the safer number for them."""
    text = [
        "# Intervals of scores of masks: how often they hold the truth",
        "",
        wrapped(how),
        "",
        wrapped(result),
        "",
        *table("Mean Dice", MEANS, of_means),
        *table("Median Dice", MEDIANS, of_medians),
        *table("Mean surface distance", DISTANCES, of_distances),
        wrapped(tails),
        "",
        "## Mean Dice over three regions",
        "",
        "One of them is in half of the patients.",
        "",
        "| patients | **reported** |",
        "| --- | --- |",
        *(f"| {n} | {macro(worlds, n):.1f} |" for n in PATIENTS),
        "",
    ]
    Path(__file__).with_name("SEGMENTATION_INTERVALS.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
