import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from finetune.config.build import source_node
from finetune.preprocessing import FITS

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = tuple(sorted(path.stem for path in CONF.glob("data/*.yaml") if not path.stem.startswith("_")))


def data(name: str, *overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+data={name}", *overrides])
    return OmegaConf.to_container(config, resolve=True)["data"]  # type: ignore[index,return-value,call-overload]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_the_source_is_in_the_file_with_its_default(name):
    config = data(name)
    node = source_node(config, trust=[])
    source = get_class(node["_target_"])
    fields = {key: p.default for key, p in inspect.signature(source).parameters.items()}
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    assert given.keys() == fields.keys()
    for key, default in fields.items():
        if default.__class__.__name__ != "_HAS_DEFAULT_FACTORY_CLASS":
            assert given[key] == default, key
    assert config["name"] == name
    assert config["fit"] in FITS


@pytest.mark.parametrize("path", sorted(CONF.glob("data/*.yaml")) + sorted(CONF.glob("transforms/*.yaml")), ids=str)
def test_every_key_has_its_sentence(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    for line in lines:
        if line[:1].isalpha() and ":" in line and not line.startswith(("defaults:", "source:", "audit:", "_")):
            assert "  # " in line, line
            assert line.rstrip().endswith("."), line


def test_what_is_typed_reaches_the_source(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text("path,Edema,Mass,age\na.png,1,,5\n")
    config = data(
        "csv", f"data.table={tmp_path}/t.csv", "data.label=[Edema,Mass]", "data.metadata=[age]", "data.uncertain=one"
    )
    source = instantiate(source_node(config, trust=[]))
    assert source.metadata == ["age"]
    table = source.table()
    assert table.classes == ["Edema", "Mass"]
    chest = instantiate(source_node(data("chestxray", "data.findings=[Hernia]", "data.root=x"), trust=[]))
    assert (chest.findings, chest.root) == (["Hernia"], "x")
    assert instantiate(source_node(data("folder", "data.root=y"), trust=[])).root == "y"
