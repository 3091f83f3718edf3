"""The table of Kermany's chest X-rays that fits are timed on: so many images of each split, drawn by a seed.

    python -m benchmarks.kermany_table METADATA_CSV OUT_CSV [--train 800] [--val 200] [--test 200] [--seed 0]

METADATA_CSV has path, label, patient_id and split, no patient in two splits. A split of 0 images is left out.
"""

import argparse

import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metadata")
    parser.add_argument("out")
    numbers = {"train": 800, "val": 200, "test": 200}
    for split, number in numbers.items():
        parser.add_argument(f"--{split}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    table = pd.read_csv(given.metadata)
    parts = [table[table["split"] == split].sample(getattr(given, split), random_state=given.seed) for split in numbers]
    pd.concat(parts).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
