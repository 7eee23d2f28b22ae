"""From a dropped blob to a validated run: find the recipe, stream the file, write the report and both splits."""

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import IO

import msgspec
from azure.core import MatchConditions
from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import ContainerClient

from . import azure_clients
from .dataset import MAX_LINE, Report, Statistics, markdown, rescue_holdout, split, validate
from .errors import UserError
from .recipe import Recipe, read_recipe
from .runs import DatasetVersion, Run
from .settings import settings

log = logging.getLogger("function_app.intake")

# The name is also the registered model's and, with a suffix, the endpoint's (3-32 characters in Azure).
MODEL_NAME = re.compile(r"[a-z][a-z0-9-]{1,24}")
COMPANIONS = ("recipe.yaml", "eval.jsonl")  # files of a model's folder that are no datasets
UNPLACED = "unplaced"  # the model of a run whose file lies where no model can be read from its path


class DatasetError(UserError):
    """The uploaded file cannot be trained on; the message is shown to the person who uploaded it."""


class Replaced(Exception):
    """The file was overwritten or deleted while it was read; its next version has a run of its own."""


def model_of(blob: str) -> str | None:
    """The model that a blob of the datasets container is for; None when the blob starts no run."""
    folder, _, name = blob.rpartition("/")
    if folder and "/" not in folder and name in COMPANIONS:
        return None
    return folder if MODEL_NAME.fullmatch(folder) else UNPLACED


def check_place(blob: str) -> None:
    """Raise DatasetError unless the blob is ``<model>/<file>.jsonl``."""
    folder, _, name = blob.rpartition("/")
    if not folder or "/" in folder:
        raise DatasetError(
            f"{blob} is in the wrong place; drop it as <model>/<file>.jsonl, for example support/{name}."
        )
    if not MODEL_NAME.fullmatch(folder):
        raise DatasetError(
            f"The folder {folder!r} is no model name: 2 to 25 lower-case letters, digits and hyphens, a letter first."
        )
    if not name.endswith(".jsonl"):
        raise DatasetError(f"{name} is not JSON Lines; convert it to a .jsonl file with one chat a line.")


def take_in(run: Run) -> Recipe:
    """Validate the run's file and write ``<run-id>/train.jsonl``, ``eval.jsonl`` and ``recipe.json``.

    Fills in the run's recipe, numbers and links. Raises DatasetError (after writing the report) or RecipeError when
    the person has something to mend, and Replaced when the file is not the version that the run is for.
    """
    check_place(run.dataset.blob)
    recipe = _recipe(run.model)
    report = Report()
    with tempfile.TemporaryFile() as train, tempfile.TemporaryFile() as held_out:
        given = _given_holdout(run.model, report, held_out)
        # Findings of eval.jsonl come before those of the file itself; both are listed.
        records = validate(_lines(run.dataset), report)
        trained, evaluated = split(records, recipe.evaluation.holdout, train, None if given else held_out)
        if not given and not evaluated and trained:
            trained, evaluated = _rescue(train, held_out)
        report.statistics.train, report.statistics.eval = trained, given or evaluated
        _write_report(run, report)
        if not report.valid:
            raise DatasetError(report.summary())
        _write(run, "train.jsonl", train)
        _write(run, "eval.jsonl", held_out)
        run.fingerprint = _fingerprint(recipe, train, held_out)
    options = msgspec.json.format(msgspec.json.encode(recipe.training_options()))
    _runs().upload_blob(f"{run.id}/recipe.json", options, overwrite=True)
    run.recipe = msgspec.to_builtins(recipe)
    run.numbers["dataset"] = msgspec.to_builtins(report.statistics)
    return recipe


def explain(run: Run, error: UserError) -> None:
    """Write a report for a file that was refused before it was read."""
    if "report" not in run.links:
        report = Report(statistics=Statistics())
        report.add("refused", 0, str(error), "")
        _write_report(run, report)


def input_url(run: Run, name: str) -> str:
    """Where the training job finds one of the files that ``take_in`` wrote."""
    return f"{settings().blob_service_uri}/{settings().runs_container}/{run.id}/{name}"


def _runs() -> ContainerClient:
    return azure_clients.container(settings().runs_container)


def _recipe(model: str) -> Recipe:
    blob = azure_clients.container(settings().datasets_container).get_blob_client(f"{model}/recipe.yaml")
    try:
        raw = blob.download_blob().readall()
    except ResourceNotFoundError:
        return Recipe()
    try:
        return read_recipe(raw.decode("utf-8"), f"{model}/recipe.yaml")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{model}/recipe.yaml is not UTF-8 (byte {error.start + 1}); save it as UTF-8.") from None


def _given_holdout(model: str, report: Report, target: IO[bytes]) -> int:
    """Validate the user's own ``eval.jsonl`` into ``target``; return its number of records, 0 when there is none."""
    name = f"{model}/eval.jsonl"
    blob = azure_clients.container(settings().datasets_container).get_blob_client(name)
    try:
        raw = blob.download_blob().readall()
    except ResourceNotFoundError:
        return 0
    own = Report()
    records = list(validate(raw.splitlines(keepends=True), own))
    own.counts.pop("too_few_records", None)
    for finding in own.findings:
        if finding.code != "too_few_records":
            report.add(finding.code, finding.line, f"eval.jsonl: {finding.message}", finding.fix)
    if not records and not own.counts:
        report.add("empty_eval", 0, f"{name} holds no record.", "Fill it, or delete it to have a split made.")
    target.writelines(records)
    return len(records)


def _lines(dataset: DatasetVersion) -> Iterator[bytes]:
    """The file's lines, streamed; only the version that the run is for. Raises Replaced."""
    blob = azure_clients.container(settings().datasets_container).get_blob_client(dataset.blob)
    try:
        stream = blob.download_blob(etag=f'"{dataset.etag}"', match_condition=MatchConditions.IfNotModified)
        yield from split_lines(stream.chunks())
    except (ResourceModifiedError, ResourceNotFoundError):
        raise Replaced(dataset.blob) from None


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream. Of one that is longer than MAX_LINE only as much is kept as shows that it is."""
    rest, skipping = b"", False
    for chunk in chunks:
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            yield (rest if skipping else rest + line)[: MAX_LINE + 1]
            rest, skipping = b"", False
        if not skipping:
            rest = (rest + tail)[: MAX_LINE + 1]
            skipping = len(rest) > MAX_LINE
    if rest:
        yield rest


def _rescue(train: IO[bytes], held_out: IO[bytes]) -> tuple[int, int]:
    """Move one record of a small file to the held-out split; return the new sizes."""
    train.seek(0)
    records = train.readlines()
    held_out.write(records.pop(rescue_holdout(records)))
    train.seek(0)
    train.truncate()
    train.writelines(records)
    return len(records), 1


def _write(run: Run, name: str, content: IO[bytes]) -> None:
    content.seek(0)
    _runs().upload_blob(f"{run.id}/{name}", content, overwrite=True)


def _fingerprint(recipe: Recipe, *files: IO[bytes]) -> str:
    """What makes a training the same as another: the recipe and the records of both splits."""
    digest = sha256(msgspec.json.encode(recipe))
    for file in files:
        file.seek(0)
        digest.update(b"\0")
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_report(run: Run, report: Report) -> None:
    reports = azure_clients.container(settings().reports_container)
    reports.upload_blob(f"{run.id}.json", msgspec.json.format(msgspec.json.encode(report)), overwrite=True)
    reports.upload_blob(f"{run.id}.md", markdown(report, run.dataset.blob).encode(), overwrite=True)
    run.links["report"] = f"{reports.url}/{run.id}.md"
    log.info("report run_id=%s valid=%s findings=%d", run.id, report.valid, report.total)
