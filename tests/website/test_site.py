"""The documentation site builds without a warning and has every public name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a site built now, strictly."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def public_names() -> dict[str, str]:
    """Every name in the `__all__` of a public module, with its module, read without importing."""
    names = {}
    for path in sorted((ROOT / "tf_deformable").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if any(part.startswith("_") for part in parts):
            continue
        for statement in ast.parse(path.read_text()).body:
            if not isinstance(statement, ast.Assign):
                continue
            if getattr(statement.targets[0], "id", None) == "__all__":
                module = ".".join(parts)
                for name in ast.literal_eval(statement.value):
                    names[f"{module}.{name}"] = module
    return names


def inventory(site: Path) -> dict[str, str]:
    """Names, and the pages that say what they are, as objects.inv lists them for other sites."""
    content = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(content.split(b"zlib.\n", 1)[1]).decode().splitlines()
    entries = [line.split(" ") for line in lines]
    return {entry[0]: entry[3].replace("$", entry[0]) for entry in entries}


def test_every_public_name_has_a_place_on_a_page(site: Path) -> None:
    names, places = public_names(), inventory(site)
    assert len(names) > 90
    assert sorted(set(names) - set(places)) == []
    for name in names:
        page, _, anchor = places[name].partition("#")
        assert f'id="{anchor}"' in (site / page).read_text(), places[name]


def test_all_modules_with_public_names_are_known() -> None:
    modules = {f"tf_deformable.{name}" for name in ("layers", "ops", "models", "models.boxes")}
    assert modules | {"tf_deformable", "tf_deformable.jax"} <= set(public_names().values())


def test_no_page_asks_another_server(site: Path) -> None:
    loads = re.compile(r'<(?:script|link|img)\b[^>]*?(?:src|href)="(https?:[^"]*)')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert loads.findall(page.read_text()) == [], page


def test_products_are_not_emphasis(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(r"\w<em>|</em>\w|<code>[^<]*\\\*", page.read_text()), page


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 10
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        document = ROOT / path
        assert document.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
            assert anchor in slugs, target
