"""Where does the network look, and is that to be trusted? Heat maps, and what they are held against."""

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
