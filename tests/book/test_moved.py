"""Chapters that were renamed can be found at their old addresses."""

from pathlib import Path

import imm_book

HTML = Path(__file__).resolve().parents[2] / "_build" / "html" / "book"


def test_old_addresses_lead_to_pages_that_exist():
    assert imm_book.MOVED
    for old, new in imm_book.MOVED.items():
        assert f"url={new}.html" in (HTML / f"{old}.html").read_text(encoding="utf-8")
        assert (HTML / f"{new}.html").stat().st_size > 10_000
        assert new not in imm_book.MOVED and old not in imm_book.MOVED.values()
