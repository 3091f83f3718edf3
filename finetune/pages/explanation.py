"""explain.html: the maps, the errors, and how far the maps can be trusted, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from finetune.evaluation import wording
from finetune.explanations import overlays
from finetune.explanations.geometry import Corners
from finetune.files import plain, write_text_atomic
from finetune.pages.environment import render

SIDE, MAX_BYTES = 448, 30000  # of the two images side by side

METHODS = {
    "grad_cam": "Grad-CAM (Selvaraju et al., 2017)",
    "grad_cam_pp": "Grad-CAM++ (Chattopadhay et al., 2018)",
    "occlusion": "Occlusion (Zeiler and Fergus, 2014)",
    "integrated_gradients": "Integrated gradients (Sundararajan et al., 2017)",
    "seg_grad_cam": "Seg-Grad-CAM (Vinogradova et al., 2020)",
    "box_gradient": "Gradient times map of each box's score (as ODAM, Zhao and Chan, 2023, without smoothing)",
}


@dataclass(frozen=True)
class Figure:
    """An image, and the same with its heat map."""

    section: str
    """A name of SECTIONS."""
    caption: str
    alt: str
    image: np.ndarray
    """uint8 (H, W, 3), gray, with its boxes or outlines."""
    heated: np.ndarray
    """uint8 (H, W, 3)"""

    @classmethod
    def make(
        cls,
        section: str,
        about: Mapping[str, Any],
        image: np.ndarray,
        heat: np.ndarray,
        boxes: Sequence[Corners] = (),
        draw: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Figure:
        """From an image's entry in explain.json, the image, its map and its boxes; or `draw`, which adds truth and
        prediction to uint8 (S, S, 3)."""
        text = caption(about)
        outlined_image, heated = overlays.outlined(overlays.gray(image), boxes), overlays.heated(image, heat, boxes)
        if draw is not None:
            outlined_image, heated = draw(outlined_image), draw(heated)
        described = f"{text}; {where(about)}"
        if "maximum" in about and about["maximum"] is None:  # the image twice, which needs an explanation
            text = described
        return cls(section, text, described, outlined_image, heated)

    def jpeg(self) -> str:
        """Both side by side, in base64."""
        return overlays.jpeg(np.concatenate([self.image, self.heated], axis=1), SIDE, MAX_BYTES)


def caption(about: Mapping[str, Any]) -> str:
    """Pneumonia: false negative (missed), 3.1 %: name.png; heart, Dice 0.91, 64 % of the heat inside: name.png"""
    if "probability" not in about:
        return caption_of_place(about)
    probability = f"{100 * about['probability']:.1f} %"
    name = PurePosixPath(str(about["sample"])).name
    if "kind" in about:
        kind = wording.KINDS.get(about["kind"], about["kind"])
        return f"{about['class']}: {kind[0].lower()}{kind[1:]}, {probability}: {name}"
    if "true" in about:
        return f"{about['true']} taken for {about['answer']}, {probability}: {name}"
    return f"{about['class']}, {probability}: {name}"


def caption_of_place(about: Mapping[str, Any]) -> str:
    """The caption of a region or a box."""
    parts = [str(about["class"])]
    if about.get("score") is not None:
        parts.append(f"score {about['score']:.2f}")
    if about.get("kind"):
        parts.append(str(about["kind"]))
    if about.get("dice") is not None:
        parts.append(f"Dice {about['dice']:.2f}")
    if about.get("inside") is not None:
        parts.append(f"{100 * about['inside']:.0f} % of the heat inside")
    if about.get("inside_true") is not None:
        parts.append(f"{100 * about['inside_true']:.0f} % inside the truth")
    return f"{', '.join(parts)}: {PurePosixPath(str(about['sample'])).name}"


def where(about: Mapping[str, Any]) -> str:
    """The position of the maximum in words, for screen readers."""
    at = about.get("maximum")
    if at is None:
        return "the map is constant"
    return f"hottest {100 * at['x']:.0f} % from the left, {100 * at['y']:.0f} % from the top"


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What was found, the most important first."""
    lines = []
    if "sanity" in result:
        lines.append(result["sanity"]["sentence"])
    if "localisation" in result:
        localisation = result["localisation"]
        scores = localisation["all"]
        lines.append(localisation["sentence"])
        lines.append(
            f"IoU with the boxes {wording.interval(scores['iou'])}; regions put at random give "
            f"{wording.number(scores['iou']['chance'])}, other patients' maps "
            f"{wording.number(scores['iou']['elsewhere'])}."
        )
        if "note" in scores:
            lines.append(f"Boxes are of {scores['note']}: the numbers may be far off.")
    if "mass" in result:
        lines.append(result["mass"]["sentence"])
    lines += result.get("notes", [])
    if "errors" in result:
        data = result["data"]
        on_data = f"{wording.counted(data['images'], 'image')} of {data['name']} (split={data['split']})"
        rule = f" ({result['rule']})" if result.get("rule") else ""
        shown_errors = f"; the {len(result['errors'])} most confident are shown" if result["errors"] else ""
        lines.append(f"{wording.counted(result['wrong'], 'wrong prediction')}{rule} on {on_data}{shown_errors}.")
    lines += result.get("known", [])
    if result.get("seen"):
        lines.append(
            "The network was trained on some of these images: on others it makes more errors, and maps may be worse."
        )
    return lines


def write(path: Path, result: Mapping[str, Any], figures: Sequence[Figure], command: str = "") -> Path:
    """Write the page from the contents of explain.json and the images."""
    page = render(
        "explain.html.j2",
        result=plain(result),
        method=METHODS[result["method"]],
        reading=READING.get(result["method"], ""),
        sentences=sentences(result),
        sections=[
            (name, title, about, [figure for figure in figures if figure.section == name])
            for name, (title, about) in SECTIONS.items()
        ],
        command=wording.shortened_command(command),
    )
    return write_text_atomic(path, page)


ERRORS = (
    "The most confident wrong predictions, one class after the other. Of a false negative "
    "(missed) the map shows the evidence for the finding, of a false positive (false alarm) or a wrong "
    "class the evidence for the wrong one. A class is called positive from the threshold of the model's first "
    "operating point on, else from 0.5. Look for marks, tubes, borders and other objects that are not a finding, and "
    "check the label. A click or Enter enlarges an image."
)
LOCATED = "Some of the findings that were compared with boxes, which are outlined."
IMAGES = "Each for the class that was requested, or else its most probable one."
OUTLINES = "Truth is a solid blue line, prediction a dashed orange one. A click or Enter enlarges an image."
SECTIONS = {
    "errors": ("Most confident errors", ERRORS),
    "located": ("Findings with boxes", LOCATED),
    "images": ("Images", IMAGES),
    "worst_regions": (
        "Regions with the lowest Dice",
        f"One region after the other. Of a region that is predicted nowhere, the map is of all pixels. {OUTLINES}",
    ),
    "regions": ("Other regions", f"Spread over the images whose maps were measured. {OUTLINES}"),
    "region_images": (
        "Images",
        f"Each for the region that was requested, or else its largest predicted one. {OUTLINES}",
    ),
    "wrong_boxes": (
        "Most confident false positives",
        "One class after the other: boxes from the threshold on that match no true box. A missed box has no score, and "
        f"so no map. {OUTLINES}",
    ),
    "boxes": (
        "Other boxes",
        "Of boxes whose maps were measured: the most confident of each image, and up to two more from the threshold on."
        f" {OUTLINES}",
    ),
    "box_images": ("Images", f"The most confident boxes of each, whatever their scores. {OUTLINES}"),
}
"""Section -> its title, and what it shows; sections without figures are left out."""

READING = {
    "seg_grad_cam": (
        "Explained is the sum of a region's logits over its predicted pixels. Channels are weighted by their mean "
        "gradient over all places: heat outside the region may be context, or the same channels elsewhere. What the "
        "network reads from finer maps than the backbone's last one is not shown."
    ),
    "box_gradient": (
        "Explained is the log odds of a box's class, as it was before suppression; how the box was proposed is not. "
        "The gradient reaches only places near the box: compare the share of the heat inside with that of an even "
        "heat. What the network reads from finer maps than the backbone's last one is not shown."
    ),
}
"""Method -> what its maps are of, and what they do not show."""
