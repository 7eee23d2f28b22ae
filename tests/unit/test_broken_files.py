"""The corpus of broken files through the whole check: each is explained as it should be, and nothing of it is shown."""

import msgspec
import pytest
from broken import CORPUS, LONGEST_LINE, MARKER, Broken

from function_app.dataset.check import check_file
from function_app.dataset.codes import CODES
from function_app.dataset.lengths import Limits
from function_app.dataset.report import Report


def report_of(broken: Broken) -> Report:
    report = Report(dataset=broken.name)
    check_file([broken.content], report, name=broken.name, limits=Limits(max_line=LONGEST_LINE))
    return report


@pytest.mark.parametrize("broken", CORPUS, ids=lambda broken: broken.name)
def test_a_broken_file_is_explained(broken: Broken) -> None:
    report = report_of(broken)
    found = [(f.code, f.line, f"{f.message} {f.fix}".lower()) for f in report.findings]
    wanted = [each for each in found if each[0] == broken.code and broken.line in (None, each[1])]
    assert any(broken.says.lower() in text for _, _, text in wanted), found
    assert MARKER not in msgspec.json.encode(report).decode()
    for finding in report.findings:
        assert finding.severity == CODES[finding.code][0]


def test_the_corpus_is_large_and_covers_the_codes() -> None:
    assert len(CORPUS) >= 60
    companions = {"wrong_place", "invalid_recipe", "invalid_tokenizer", "empty_eval", "eval_overlap"}
    reckoned = {"over_budget", "over_time"}  # test_prices.py
    lengths = {"too_long", "truncated", "maybe_too_long", "too_large", "too_many_errors"}  # test_check.py
    assert {broken.code for broken in CORPUS} == CODES.keys() - companions - reckoned - lengths - {"eval_near_overlap"}
