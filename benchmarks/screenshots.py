"""The report of a run as a browser shows it: wide, dark and on a phone, into the images that the README shows.

python -m benchmarks.screenshots RUN [--out notebooks/images]
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from tests.evaluation.browser import Browser

VIEWS = {  # name -> width, height, dark, what is scrolled to
    "report_wide": (1280, 860, False, "body"),
    "report_dark": (1280, 860, True, "#explorer"),
    "report_phone": (390, 844, False, "#errors"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("notebooks/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            for name, (width, height, dark, place) in VIEWS.items():
                browser.open(given.run / "report.html", width=width, height=height, dark=dark)
                browser.run(f"document.querySelector({place!r})?.scrollIntoView()")
                path = given.out / f"{name}.png"
                browser.image(path)
                Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)
                print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
            if browser.problems:
                raise SystemExit(f"the page complains: {browser.problems}")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
