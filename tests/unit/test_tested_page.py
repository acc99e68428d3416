"""docs/tested.md keeps what a script did not run."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.platforms import first_minute, tested_page
from tests.platforms.tested_page import PAGE, Row, merged, with_section, write

ROW = Row("12.11", "6.1.0", "1.0.6", "3.11.2", "252", "demo", "passed", "0 of 9 | packets", "2026-11-30")
NEWER = Row("13.1", "6.12.0", "1.1.3", "3.13.5", "257", "demo", "passed", "", "2026-11-30")


def test_sections_are_replaced_one_by_one(tmp_path: Path) -> None:
    page = tmp_path / "tested.md"
    write("vm", "Of the kernel.", [ROW], page=page)
    write("matrix", "Of the userland.", [NEWER], page=page)
    before = page.read_text()
    assert before.count("Of the") == 2 and before.startswith("# ")
    write("vm", "Of the kernel.", [replace(ROW, debian="12.12", result="failed")], page=page)
    after = page.read_text()
    assert [line for line in after.splitlines() if line.startswith("| 12")] == [
        "| 12.12 | 6.1.0 | 1.0.6 | 3.11.2 | 252 | demo | failed | 0 of 9 / packets | 2026-11-30 |"
    ]
    assert after.partition("<!-- matrix -->")[2] == before.partition("<!-- matrix -->")[2]


def test_rows_that_did_not_run_stay_in_order(tmp_path: Path) -> None:
    page = tmp_path / "tested.md"
    write("vm", "", [NEWER, ROW], page=page)
    rows = merged(page.read_text(), "vm", [replace(ROW, test="leaks")], ["leaks", "demo"])
    assert [(row.debian, row.test) for row in rows] == [("12.11", "leaks"), ("12.11", "demo"), ("13.1", "demo")]
    assert rows[2].count == "-"


def test_page_without_the_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="section matrix"):
        with_section("# Tested platforms\n<!-- vm -->\n<!-- /vm -->\n", "matrix", "")


def test_page_of_the_project_has_both_sections() -> None:
    text = PAGE.read_text() if PAGE.exists() else with_section("", "vm", "")
    for name in ("vm", "matrix"):
        assert f"<!-- {name} -->" in text
        for row in merged(text, name, []):
            assert "-" not in (row.debian, row.kernel, row.test, row.result, row.date), row


def test_head_has_a_cell_for_each_column() -> None:
    assert len({line.count("|") for line in [*tested_page.head(), *tested_page.lines([ROW])]}) == 1


def test_page_of_the_ways_has_commands_and_facts() -> None:
    text = "## laptop\n\nroot# nftpolicy init\n1. nftpolicy check\n[...]\nfact: open\n\n## server\n\nroot# reboot\n"
    way = "## laptop\n\n```sh\nnftpolicy init\n    # fact: open\n```\n\n## server\n\n```sh\nreboot\n```\n"
    assert first_minute.page("13.1", text).partition("\n\n## ")[2] == way.removeprefix("## ")
