"""What lies in a synthetic set is called synthetic, whatever source reads it."""

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.data.phantom.dataset import make_phantoms
from finetune.steps import prepare


def test_boxes_of_phantoms_read_as_a_table_are_synthetic(tmp_path):
    root = make_phantoms(tmp_path / "phantoms", n_images=12, size=32, masks=True)
    words = [
        "data=csv",
        "data.target=boxes",
        f"data.table={root}/boxes.csv",
        f"data.root={root}",
        "data.patient=patient",
    ]
    settings = parse(compose.plain(compose.compose(words)))
    table = build.source(settings).table()
    assert not table.synthetic
    assert prepare.load_table(table, settings.data, lambda sentence: None).synthetic
