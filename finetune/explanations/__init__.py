"""Heat maps of where a network looks, and the checks they are validated against."""

from finetune.explanations.explanation import Explanation, explain
from finetune.explanations.maps import METHODS, grad_cam, grad_cam_pp, integrated_gradients, occlusion

__all__ = [
    "METHODS",
    "Explanation",
    "explain",
    "grad_cam",
    "grad_cam_pp",
    "integrated_gradients",
    "occlusion",
]
