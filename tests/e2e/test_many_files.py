"""Thirty files dropped at once, every event delivered twice: each gets its run and one job, nothing is lost."""

from pathlib import Path

from bench import thousand
from tests.local_azure import local_azure


def test_files_dropped_at_once_each_get_one_run_and_one_job(tmp_path: Path) -> None:
    with local_azure(tmp_path, "--event-copies", "2") as azure:
        client = thousand.hold_the_cluster(azure)
        dropped = thousand.drop(azure, good=24, broken=3, overwritten=3)
        assert [file.valid for file in dropped].count(False) == 3
        assert [len(file.etags) for file in dropped].count(2) == 3
        records = thousand.settle(azure, dropped, limit=60)
        thousand.check(dropped, records, thousand.jobs(client))
        thousand.check_requests(dropped, records, azure.log("control"))
