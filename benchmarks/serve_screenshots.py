"""The page of job=serve as a browser shows it: wide, dark and on a phone, into the images that docs/serve.md shows.

python -m benchmarks.serve_screenshots RUN IMAGE [--out notebooks/images]
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from tests.evaluation.browser import Browser
from tests.serving.served import Server, listening

VIEWS = {  # name -> width, height, dark, whether the heat map is shown
    "serve_wide": (1060, 760, False, False),
    "serve_dark": (1060, 760, True, True),
    "serve_phone": (390, 844, False, False),
}
PRESSED = "document.getElementById('heat-button').getAttribute('aria-pressed') === 'true'"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, default=Path("notebooks/images"))
    parser.add_argument("--views", nargs="*", default=["serve_wide"], choices=VIEWS)
    given = parser.parse_args()
    server = Server(given.run)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, listening(server) as address:
        browser = Browser(Path(profile))
        try:
            for name in given.views:
                width, height, dark, heat = VIEWS[name]
                browser.open(address, width=width, height=height, dark=dark)
                browser.wait_for("document.querySelectorAll('#card dt').length > 5")
                browser.choose_file("#file", given.image.resolve())
                browser.wait_for("!document.getElementById('result').hidden")
                if heat:
                    browser.run("document.getElementById('heat-button').click()")
                    browser.wait_for(PRESSED)
                path = given.out / f"{name}.png"
                browser.image(path, whole=name == "serve_phone")
                Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
                print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
            if browser.problems:
                raise SystemExit(f"the page complains: {browser.problems}")
        finally:
            browser.close()
    server.close()


if __name__ == "__main__":
    main()
