"""Every notebook runs from top to bottom with small settings, and is kept with its outputs."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_500_000


def cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_SMALL", "1")
    for name in ("CIFAR10_FOLDER", "DENSENET_WEIGHTS", "KERMANY_FOLDER", "NIH_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # `python -m finetune` in a cell is this checkout's
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "show", pyplot.close)
    namespace: dict = {}
    for number, cell in enumerate(cells(notebook)):
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_as_it_was_run(notebook):
    """In order, and without an error or a warning."""
    found = cells(notebook)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_names_no_place_of_the_machine_it_was_run_on(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    places = re.findall(r"(?<![\w.:/+])/(?:home|root|tmp|work|Users|mnt|usr|opt|var)/[\w./-]*", text)
    assert not places
