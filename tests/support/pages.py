"""The pages for people, and their parts: code, prose, links."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGES", "ROOT", "TUTORIALS", "code_in", "prose_in", "shell_blocks"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("deploy/**/*.md"),
    }
)
TUTORIALS = sorted(ROOT.glob("docs/tutorials/*.md"))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_in(text: str) -> list[str]:
    """Return the text's code: each line of a block, and each span."""
    lines = [line for _, block in _FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", _FENCED.sub("", text)))]


def prose_in(text: str) -> str:
    """Return the text without code, tables, headings, comments and link targets."""
    text = re.sub(r"<!--.*?-->", "", _FENCED.sub("", text), flags=re.DOTALL)
    text = re.sub(r"^(\||#|<).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", " ", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def shell_blocks(text: str) -> list[tuple[str, str]]:
    """Return the blocks that a reader runs, each with the output shown after it (empty without output)."""
    found = []
    blocks = _FENCED.findall(text)
    for (language, code), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "sh":
            found.append((code, shown if following == "text" else ""))
    return found
