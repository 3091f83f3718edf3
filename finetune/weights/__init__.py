"""Weights: from a name, tag or file to a loaded backbone or network. Every key is used, dropped by name or an error."""

from finetune.weights.files import read_tensors
from finetune.weights.fitting import Fit, fit
from finetune.weights.loading import LoadReport, load_into
from finetune.weights.sources import WeightsFile, resolve
from finetune.weights.whole import load_network

__all__ = ["Fit", "LoadReport", "WeightsFile", "fit", "load_into", "load_network", "read_tensors", "resolve"]
