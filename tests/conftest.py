"""What all tests share: quiet, offline, one thread, and the way to the real images where they exist."""

import logging
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Decoded images of a test never land in the user's cache."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "image-cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights beside the checkout; tests that want it are skipped without it."""
    folder = Path(os.environ.get("FINETUNE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    return folder


@pytest.fixture
def own_parts():
    """The neck `narrow`, and neck and head that read every map (`top_down`, `every_map`), for one test."""
    from finetune.extend import register_head, register_neck
    from finetune.heads import HEADS, NECKS
    from tests import parts

    before = [(table, dict(table)) for table in (HEADS, NECKS)]
    register_neck("narrow", parts.Narrow)
    register_neck("top_down", parts.TopDown)
    register_head("every_map", parts.EveryMap)
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)
