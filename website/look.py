"""Photographs every page of the built site, and tells what is wider than the screen.

    make docs
    python website/look.py [--pages install.html ...]   # pictures go to build/look

It needs Playwright (`pip install playwright`) and a Chromium, found on the PATH or given by
`--chromium`. Pages are opened as files, on a desktop and on a phone, light and dark.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
# Elements that stick out of the page, unless something around them scrolls by itself.
_OVERHANGING = """() => {
  const wide = document.scrollingElement.scrollWidth > innerWidth;
  const clips = e => ["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX);
  const scrolls = e => e && e !== document.body && (clips(e) || scrolls(e.parentElement));
  const out = [...document.querySelectorAll(".md-content *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e));
  const missing = [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src);
  const named = out.slice(0, 3).map(e => e.tagName + ": " + e.textContent.trim().slice(0, 60));
  return { wide, missing, out: named };
}"""


def photograph(
    browser: Browser, site: Path, pages: list[Path], screen: str, scheme: str, folder: Path
) -> list[str]:
    """Writes a picture of each page, whole, and returns what is wrong with them."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        is_mobile=screen == "phone",
    )
    tab, faults = context.new_page(), []
    for page in pages:
        tab.goto(page.as_uri(), wait_until="load")
        found = tab.evaluate(_OVERHANGING)
        name = page.relative_to(site).as_posix()
        if found["wide"] or found["missing"] or found["out"]:
            faults.append(f"{name}, {screen}, {scheme}: {found}")
        picture = folder / screen / scheme / f"{name.replace('/', '_').removesuffix('.html')}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=picture, full_page=True)
    context.close()
    return faults


def main() -> int:
    """Looks at all pages, and returns 1 if one of them is wider than its screen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "build/site")
    parser.add_argument("--output", type=Path, default=ROOT / "build/look")
    parser.add_argument("--pages", nargs="*", help="only these, for example install.html")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chrome"))
    arguments = parser.parse_args()
    site = arguments.site.resolve()
    pages = [site / page for page in arguments.pages or []] or sorted(site.rglob("*.html"))
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.chromium, args=["--allow-file-access-from-files"]
        )
        for screen in SCREENS:
            for scheme in SCHEMES:
                faults += photograph(browser, site, pages, screen, scheme, arguments.output)
        browser.close()
    print("\n".join(faults) or f"{len(pages)} pages: none is wider than its screen.")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
