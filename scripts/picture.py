"""Take docs/images/page.png of a server that runs: `rookery serve demo-small/timeline --world demo-small/world`.

    .venv/bin/python scripts/picture.py [--address http://127.0.0.1:8000] [--out docs/images/page.png]

Needs what `make test-browser` installs, and a Chromium: that of Playwright, or the one that CHROMIUM names.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("docs/images/page.png"))
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or None)
        page = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        page.goto(options.address, wait_until="networkidle")
        page.screenshot(path=options.out)
        browser.close()
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
