"""Prose that reads well: few headless clauses and pronouns, no phrases that hide the subject."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from support.pages import PAGES, ROOT, prose_in

if TYPE_CHECKING:
    from pathlib import Path

#: Occurrences per 1,000 words of all pages, somewhat above today's.
RATES = {
    ("what", "whatever", "whoever", "whose"): 2.0,
    ("one", "ones"): 3.0,
    ("tell", "tells", "told", "say", "says", "said", "ask", "asks", "asked"): 1.0,
}
#: Per page; short pages may have more by chance.
MOST_ON_A_PAGE = 6.0
LEAST_WORDS = 150

BANNED = (
    "held to",
    "is heeded",
    "not heeded",
    "of somebody",
    "of one's own",
    "wakes or tells",
    "as it comes",
    "takes itself for",
    "is believed",
    "are believed",
    "plain lane",
    "what is not",
    "is that which",
    "in other hands",
    "must be reached",
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


@pytest.mark.parametrize("family", RATES, ids=lambda family: family[0])
def test_rates(family: tuple[str, ...]) -> None:
    everything = [word for page in PAGES for word in words(prose_in(page.read_text(encoding="utf-8")))]
    rate = 1000 * sum(word in family for word in everything) / len(everything)
    assert rate <= RATES[family], f"{rate:.2f} of {family} per 1,000 words"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_stands_out(page: Path) -> None:
    found = words(prose_in(page.read_text(encoding="utf-8")))
    if len(found) < LEAST_WORDS:
        return
    for family in RATES:
        rate = 1000 * sum(word in family for word in found) / len(found)
        assert rate <= MOST_ON_A_PAGE, f"{rate:.2f} of {family} per 1,000 words"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_phrases(page: Path) -> None:
    text = " ".join(prose_in(page.read_text(encoding="utf-8")).lower().split())
    assert not [phrase for phrase in BANNED if phrase in text]
