"""Which published weights there are for which name, and under which licence, as the installed timm says.

python -m benchmarks.weights    # writes benchmarks/WEIGHTS.md; asks no network
"""

from collections import defaultdict
from pathlib import Path

import timm

from finetune.backbones import list_models
from finetune.weights.sources import default_tag, published

HEADER = """# Published weights

`backbone.weights=default` takes the tag in bold (timm's default), `backbone.weights=TAG` another one.
Read from timm {version} by `python -m benchmarks.weights`. Licences are those that timm states for the weights; the
images they were trained on have terms of their own. cc-by-nc-4.0 means no commercial use.
"""


def main() -> None:
    rows = ["| name | tags by licence | size | from |", "| --- | --- | --- | --- |"]
    without = []
    for name in list_models():
        tags = published(name)
        if not tags:
            without.append(name)
            continue
        default = default_tag(name)
        by_licence = defaultdict(list)
        for tag in sorted(tags, key=lambda tag: (tag != default, tag)):
            by_licence[tags[tag].license or "not stated"].append(f"**{tag}**" if tag == default else tag)
        licences = "; ".join(f"{licence}: {', '.join(found)}" for licence, found in by_licence.items())
        place = "Hugging Face hub" if tags[default].hf_hub_id else "its address alone"
        rows.append(f"| {name} | {licences} | {tags[default].input_size[1]} | {place} |")
    text = HEADER.format(version=timm.__version__) + "\n" + "\n".join(rows)
    text += "\n\nNo published weights (`backbone.weights=none` or a file): " + ", ".join(without) + ".\n"
    text += "`size` is the side in pixels at which timm evaluates the default.\n"
    Path(__file__).with_name("WEIGHTS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
