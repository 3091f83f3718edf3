"""A synthetic chest X-ray set in the layout of NIH ChestX-ray14, for demos and tests: made up, never a patient.

Images are attenuation phantoms (anatomy), with six findings (findings, where a table states their
sizes and contrasts), exposed and displayed as films (phantom_exposure). Labels are exact by construction.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.phantom.anatomy import build_chest
from finetune.data.phantom.exposure import Exposure, attenuation, expose
from finetune.data.phantom.findings import CTR_ENLARGED, CTR_HEALTHY, FINDINGS, Box, Lungs, box_of, draw
from finetune.data.phantom.grid import Anatomy, Pose

VERSION = 1
MARKER = "PHANTOM.json"
PREVALENCE = 0.18
"""Share of images with each finding."""
HEALTHY = 0.38
"""Share of images without any."""
IMAGES_PER_PATIENT = (0.36, 0.25, 0.15, 0.09, 0.06, 0.04, 0.03, 0.02)
"""Share of patients with 1, 2, ... 8 images; 2.6 on average."""
REGIONS = ("lung", "heart", *(name for name in FINDINGS if name != "Cardiomegaly"))
"""Regions of a image: the lungs as they are aerated without findings, both as one, the shadow of the heart, and each
finding."""
FIELD = 320.0
"""Side of the image in mm, before magnification."""

ENTRY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


@dataclass(frozen=True)
class Study:
    """One image of the plan: everything that is decided before a pixel is drawn."""

    patient: int
    follow_up: int
    age: int
    sex: str
    view: str
    findings: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.patient:08d}_{self.follow_up:03d}.png"


@dataclass
class Rendered:
    """A drawn study: image and lung mask as uint8 (size, size), boxes in pixels, cardiothoracic ratio as built."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    boxes: list[tuple[str, Box]]
    attenuation: NDArray[np.float32]
    ctr: float
    regions: dict[str, NDArray[np.bool_]]
    """Name of each of REGIONS -> its pixels (size, size), exact by construction; they overlap."""


def plan(n_images: int, seed: int) -> list[Study]:
    """Who is imaged how often and with what. Findings are independent of each other, of view, sex and age.

    An enlarged heart stays enlarged over a patient's images; everything else comes and goes.
    """
    rng = np.random.default_rng((seed, 0))
    counts: list[int] = []
    while sum(counts) < n_images:
        counts.append(int(rng.choice(len(IMAGES_PER_PATIENT), p=IMAGES_PER_PATIENT)) + 1)
    counts[-1] -= sum(counts) - n_images
    patient = np.repeat(np.arange(len(counts)), counts)
    has = np.zeros((n_images, len(FINDINGS)), dtype=bool)
    quota, heart = round(PREVALENCE * n_images), FINDINGS.index("Cardiomegaly")
    for p in rng.permutation(len(counts)):
        if has[:, heart].sum() + counts[p] <= quota:
            has[patient == p, heart] = True
    others = np.flatnonzero(~has[:, heart])
    sick = rng.permutation(others)[: max(round((1 - HEALTHY) * n_images) - int(has[:, heart].sum()), 0)]
    for place, image in enumerate(sick):  # every sick image with a normal heart has one of the others, in turn
        has[image, [k for k in range(len(FINDINGS)) if k != heart][place % (len(FINDINGS) - 1)]] = True
    sick = np.flatnonzero(has.any(1))
    for k in range(len(FINDINGS)):  # and then the findings share images at random until each has its quota
        free = rng.permutation(sick[~has[sick, k]])
        if k != heart:
            has[free[: max(quota - int(has[:, k].sum()), 0)], k] = True
    studies = []
    for p, count in enumerate(counts):
        age, sex = int(np.clip(rng.normal(52, 16), 18, 92)), "F" if rng.random() < 0.45 else "M"
        first = sum(counts[:p])
        for follow_up in range(count):
            view = "AP" if rng.random() < 0.35 else "PA"
            names = tuple(name for name, on in zip(FINDINGS, has[first + follow_up], strict=True) if on)
            studies.append(Study(p + 1, follow_up, min(age + follow_up // 2, 94), sex, view, names))
    return studies


def anatomy_of(study: Study, seed: int) -> Anatomy:
    """The patient's own body: the same for every image of a patient."""
    rng = np.random.default_rng((seed, 1, study.patient))
    scale = (0.92 if study.sex == "F" else 1.0) * rng.normal(1, 0.04)
    large = rng.uniform(0, 1)  # habitus
    return Anatomy(
        width=138 * scale * rng.normal(1, 0.05),
        depth=86 * scale * rng.normal(1, 0.06),
        apex=-122 * scale * rng.normal(1, 0.04),
        dome=92 * scale + rng.normal(0, 7),
        dome_drop=rng.normal(11, 6),
        wall=18 + 30 * large**2,
        ctr=rng.uniform(*CTR_HEALTHY),
        heart_tilt=rng.uniform(0.45, 0.85),
        knob=14 + 5 * rng.uniform() + (3 if study.age - study.follow_up // 2 > 60 else 0),
        breast=rng.uniform(44, 70) if study.sex == "F" else 0.0,
        air=rng.uniform(0.75, 1.35),
        rib_gap=25.0 * scale * rng.normal(1, 0.04),
        rib_tilt=rng.uniform(0.5, 0.72),
        bone=rng.uniform(0.75, 1.2),
        stomach=rng.uniform(12, 24) if rng.random() < 0.6 else 0.0,
        vessels=int(rng.integers(2**31)),
    )


def render(study: Study, seed: int, size: int) -> Rendered:
    """Draw one study. Pose, exposure and each finding have random streams of their own."""
    key = (seed, 2, study.patient, study.follow_up)
    rng = np.random.default_rng((*key, 0))
    ap = study.view == "AP"
    breath = rng.uniform(4, 26) if ap else rng.uniform(-2, 14)
    # one half of the diaphragm often stands high without any finding (liver, stomach, nerve)
    raised = rng.normal(0, 5, 2) + (rng.random(2) < 0.15) * rng.uniform(15, 35, 2)
    pose = Pose(
        scale=rng.uniform(0.84, 1.18),
        roll=np.deg2rad(rng.normal(0, 3.2)),
        yaw=np.deg2rad(rng.normal(0, 4.0 if ap else 2.5)),
        shift=(rng.uniform(-26, 26), rng.normal(12, 12)),
        lean=rng.normal(0, 6),
        breath=(breath + raised[0], breath + raised[1]),
        heart=rng.uniform(1.06, 1.13) if ap else 1.0,
        arms=rng.uniform(0, 0.4) if ap else rng.uniform(0.4, 1),
    )
    dark = rng.uniform(0.16, 0.42)
    exposure = Exposure(
        scatter=rng.uniform(0.5, 1.2) if ap else rng.uniform(0.2, 0.6),
        photons=10 ** rng.uniform(4.2, 5.0),
        tilt=(rng.normal(0, 0.16), rng.normal(0, 0.16)),
        detail=rng.uniform(0.5, 1.4),
        unsharpness=rng.uniform(0.3, 0.9),
        dark=dark,
        bright=rng.uniform(0.72, 0.92),
        gamma=rng.uniform(0.75, 1.3),
        marker=str(rng.choice(["L", "R", ""])),
        border=(rng.uniform(0, 0.05) if rng.random() < 0.2 else 0, rng.uniform(0, 0.05) if rng.random() < 0.2 else 0),
    )
    anatomy = anatomy_of(study, seed)
    wide = np.random.default_rng((seed, 1, study.patient, 1)).uniform(*CTR_ENLARGED)
    chest = build_chest(anatomy, pose, size, FIELD, wide if "Cardiomegaly" in study.findings else None)
    lungs, lesions = draw(chest, study.findings, key)
    boxes = sorted((name, box_of(mask)) for name, mask in lesions)
    total, reference = attenuation(lungs, anatomy.air), attenuation(Lungs.from_chest(chest), anatomy.air)
    image = expose(total, reference, chest, exposure, np.random.default_rng((*key, 98)))
    regions = {name: np.zeros((size, size), bool) for name in REGIONS}
    regions |= {"lung": chest.lung_mask, "heart": chest.heart_mask}
    for name, mask in lesions:
        if name in regions:  # an enlarged heart is the heart
            regions[name] = regions[name] | mask
    return Rendered(image, np.uint8(255) * chest.lung_mask, boxes, total, chest.ctr, regions)
