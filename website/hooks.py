"""What MkDocs does not do by itself: pages made of files outside of docs/, and links to those.

The repository's documents link to each other as GitHub shows them. Some of them are pages of the
site under another path, and source files are none.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

# Page, and the document that it is.
PAGES_ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "kernels.md": "cc/kernels/README.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
_CODE = re.compile(r"^(```+).*?^\1$|`[^`\n]+`\(", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages whose documents lie outside of docs/."""
    for page, document in PAGES_ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes links between documents of the repository links between pages of the site."""
    path = page.file.src_uri
    folder = posixpath.dirname(PAGES_ELSEWHERE.get(path, f"docs/{path}"))
    here = posixpath.dirname(path)

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["target"]))
        return _as_on_site(link, target, here)

    return _outside_of_code(markdown, lambda text: _LINK.sub(replaced, text))


def _as_on_site(link: re.Match[str], target: str, here: str) -> str:
    """Returns a link to a file of the repository as a page in the folder `here` needs it."""
    pages = {document: page for page, document in PAGES_ELSEWHERE.items()}
    if target in pages:
        page = pages[target]
    elif target.startswith("docs/"):
        page = target.removeprefix("docs/")
    elif (ROOT / target).exists():
        return link["text"]  # A source file.
    else:
        return link[0]  # MkDocs reports it.
    if not (ROOT / target).exists():
        return link[0]
    text = link["text"]
    if text.endswith(".md"):  # On the site pages go by their titles.
        title = re.search(r"^# (.+)$", (ROOT / target).read_text(), re.M)
        text = title[1] if title else text
    return f"[{text}]({posixpath.relpath(page, here or '.')}{link['anchor'] or ''})"


def _outside_of_code(markdown: str, change: Any) -> str:
    """Returns the text with `change` made to all that is not in a fenced block."""
    parts, end = [], 0
    for block in _CODE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])
