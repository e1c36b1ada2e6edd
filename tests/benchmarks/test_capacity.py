"""The capacity table in the docs is what its command prints, and grows as it must."""

from __future__ import annotations

import pytest

from benchmarks.capacity import LOADS, Figures, reckon, size, table
from support.paths import ROOT


def test_the_docs_have_todays_table() -> None:
    text = (ROOT / "docs/how-to/capacity.md").read_text(encoding="utf-8")
    assert table(Figures()) in text, "write it anew with 'python -m benchmarks.capacity'"


def test_a_lost_workers_share_fits_beside_the_others_own() -> None:
    figures = Figures()
    for rate, users in LOADS:
        found = reckon(rate, users, figures)
        assert found.workers >= 2
        assert rate / (found.workers - 1) <= 1.43 * figures.worker_rate
        assert found.partitions >= 4 * found.workers or found.partitions == 4


def test_twice_the_load_writes_twice_and_twice_the_users_keep_twice() -> None:
    one, two = reckon(1_000, 10_000, Figures()), reckon(2_000, 20_000, Figures())
    assert two.changelog_rate == pytest.approx(2 * one.changelog_rate)
    assert two.changelog_size == pytest.approx(2 * one.changelog_size)
    assert two.topics_size == pytest.approx(2 * one.topics_size)


@pytest.mark.parametrize(
    ("value", "text"), [(10, "10 B"), (1 << 20, "1 MiB"), (1.5 * (1 << 30), "1.5 GiB"), (2 << 40, "2 TiB")]
)
def test_sizes_are_short(value: float, text: str) -> None:
    assert size(value) == text
