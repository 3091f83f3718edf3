"""Heat maps of where a network looks, and the checks they are validated against."""

from finetune.explanations.explanation import Explanation, explain
from finetune.explanations.maps import METHODS, grad_cam, grad_cam_pp, integrated_gradients, occlusion
from finetune.explanations.of_boxes import BoxExplanation
from finetune.explanations.of_regions import RegionExplanation

__all__ = [
    "METHODS",
    "BoxExplanation",
    "Explanation",
    "RegionExplanation",
    "explain",
    "grad_cam",
    "grad_cam_pp",
    "integrated_gradients",
    "occlusion",
]
