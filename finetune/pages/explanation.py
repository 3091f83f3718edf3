"""explain.html: the maps, what was wrong, and how far the maps are to be trusted, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from finetune.evaluation import wording
from finetune.explanations import overlays
from finetune.explanations.geometry import Corners
from finetune.files import plain, write_text_atomic

SIDE, MAX_BYTES = 448, 30000  # of the two pictures beside each other

METHODS = {
    "grad_cam": "Grad-CAM (Selvaraju et al., 2017)",
    "grad_cam_pp": "Grad-CAM++ (Chattopadhay et al., 2018)",
    "occlusion": "Occlusion (Zeiler and Fergus, 2014)",
    "integrated_gradients": "Integrated gradients (Sundararajan et al., 2017)",
}


@dataclass(frozen=True)
class Figure:
    """A picture, and the same with its heat."""

    section: str
    """errors, located or images."""
    caption: str
    alt: str
    picture: np.ndarray
    """uint8 (S, S, 3), gray, with its boxes."""
    heated: np.ndarray
    """uint8 (S, S, 3)"""

    @classmethod
    def make(
        cls,
        section: str,
        about: Mapping[str, Any],
        picture: np.ndarray,
        heat: np.ndarray,
        boxes: Sequence[Corners] = (),
    ) -> Figure:
        """From what explain.json says of a picture, the picture, its map and its boxes."""
        text = caption(about)
        under = overlays.outlined(overlays.gray(picture), boxes)
        described = f"{text}; {where(about)}"
        if "maximum" in about and about["maximum"] is None:  # the image once more, which wants a word
            text = described
        return cls(section, text, described, under, overlays.heated(picture, heat, boxes))

    def jpeg(self) -> str:
        """Both beside each other, in base64."""
        return overlays.jpeg(np.concatenate([self.picture, self.heated], axis=1), SIDE, MAX_BYTES)


def caption(about: Mapping[str, Any]) -> str:
    """Pneumonia: false negative (missed), 3.1 %: name.png"""
    probability = f"{100 * about['probability']:.1f} %"
    name = PurePosixPath(str(about["sample"])).name
    if "kind" in about:
        kind = wording.KINDS.get(about["kind"], about["kind"])
        return f"{about['class']}: {kind[0].lower()}{kind[1:]}, {probability}: {name}"
    if "true" in about:
        return f"{about['true']} taken for {about['answer']}, {probability}: {name}"
    return f"{about['class']}, {probability}: {name}"


def where(about: Mapping[str, Any]) -> str:
    """The maximum's place in words, for those who do not see the image."""
    at = about.get("maximum")
    if at is None:
        return "the map is the same everywhere"
    return f"hottest {100 * at['x']:.0f} % from the left, {100 * at['y']:.0f} % from the top"


def sentences(told: Mapping[str, Any]) -> list[str]:
    """What was found, the most important first."""
    said = []
    if "sanity" in told:
        said.append(told["sanity"]["sentence"])
    if "localisation" in told:
        found = told["localisation"]
        scores = found["all"]
        said.append(found["sentence"])
        said.append(
            f"IoU with the boxes {wording.interval(scores['iou'])}; regions put at random give "
            f"{wording.number(scores['iou']['chance'])}, other patients' maps "
            f"{wording.number(scores['iou']['elsewhere'])}."
        )
        if "note" in scores:
            said.append(f"Boxes are of {scores['note']}: the numbers may be far off.")
    if "errors" in told:
        data = told["data"]
        of = f"{wording.counted(data['images'], 'image')} of {data['name']} (split={data['split']})"
        by = f" ({told['rule']})" if told.get("rule") else ""
        shown = f"; the {len(told['errors'])} most confident are shown" if told["errors"] else ""
        said.append(f"{wording.counted(told['wrong'], 'wrong prediction')}{by} on {of}{shown}.")
    said += told.get("known", [])
    if told.get("seen"):
        said.append("The network learned from some of these images: on others it errs more, and maps may be worse.")
    return said


def write(path: Path, told: Mapping[str, Any], figures: Sequence[Figure], command: str = "") -> Path:
    """The page, from what stands in explain.json and the pictures."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "evaluation"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": wording.number, "interval": wording.interval, "counted": wording.counted}
    page = environment.get_template("explain.html.j2").render(
        told=plain(told),
        method=METHODS[told["method"]],
        sentences=sentences(told),
        sections=[
            (name, title, about, [figure for figure in figures if figure.section == name])
            for name, title, about in (
                ("errors", "Most confident errors", ERRORS),
                ("located", "Findings with boxes", LOCATED),
                ("images", "Images", IMAGES),
            )
        ],
        command=wording.shortened_command(command),
    )
    return write_text_atomic(path, page)


ERRORS = (
    "The wrong predictions of which the network was most certain, one class after the other. Of a false negative "
    "(missed) the map shows what spoke for the finding all the same, of a false positive (false alarm) or a wrong "
    "class what spoke for the wrong one. A class is called positive from the threshold of the model's first operating "
    "point on, else from 0.5. Look for marks, tubes, borders and other things that are no finding, and whether the "
    "label is right. A click or Enter enlarges an image."
)
LOCATED = "Some of the findings that were compared with boxes, which are outlined."
IMAGES = "Each for the class that was requested, or else its most probable one."
