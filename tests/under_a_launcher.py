"""What a launcher starts in tests: commands read from a file, one after the other in the same processes."""

import json
import sys
from pathlib import Path

from finetune.__main__ import main

if __name__ == "__main__":
    ended = []
    for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            main(words)
            ended.append(0)
        except SystemExit as stop:
            ended.append(int(stop.code or 0))
    print(f"ended {ended}", flush=True)
