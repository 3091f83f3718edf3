"""Weights: from a name, tag or file to a loaded backbone. Every key is used, named as dropped, or an error."""

from finetune.weights.detector import load_detector
from finetune.weights.files import read_tensors
from finetune.weights.fitting import Fit, fit
from finetune.weights.loading import LoadReport, load_into
from finetune.weights.sources import WeightsFile, resolve

__all__ = ["Fit", "LoadReport", "WeightsFile", "fit", "load_detector", "load_into", "read_tensors", "resolve"]
