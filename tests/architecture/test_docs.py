"""Links between the pages lead somewhere."""

from __future__ import annotations

import re

LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


def test_relative_links_exist(root):
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    broken = {
        f"{page.relative_to(root)} -> {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    }
    assert broken == set()
