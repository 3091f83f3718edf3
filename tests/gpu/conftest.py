"""Tests of a GPU: `pytest -m gpu -n 0`. Without a CUDA device they are skipped.

FINETUNE_GPU_TESTS=cpu runs them on the CPU, where they try their own code and little else.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: deterministic sums

import pytest
import torch

HERE = Path(__file__).parent
ON_CPU = os.environ.get("FINETUNE_GPU_TESTS") == "cpu"


@pytest.hookimpl(tryfirst=True)  # before -m chooses by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        # hints of cuDNN, Inductor and Lightning about a card say nothing about these tests
        item.add_marker(pytest.mark.filterwarnings("default"))
        if not torch.cuda.is_available() and not ON_CPU:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu") if ON_CPU else torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The same, for what a CPU cannot try."""
    if device.type != "cuda":
        pytest.skip("for CUDA alone")
    return device


@pytest.fixture
def accelerator() -> str:
    return "cpu" if ON_CPU else "gpu"


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No TF32, and what a test switches on is switched off."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
