"""From a dropped blob to a validated run: read the file with its companions, write the report and both splits."""

import logging
import re
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from . import azure_clients, live_record
from .blob_ranges import Replaced, large_file_slot, read_ranges
from .block_writer import BlockWriter
from .dataset.lengths import MAX_BYTES
from .dataset.report import Report
from .errors import TransientError, UserError
from .examine import Companions, examine, same_training
from .recipe import Recipe
from .recipe.defaults import LIVE
from .runs import Run, utc_now
from .settings import settings

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties, ContainerClient

log = logging.getLogger("function_app.intake")

# The name is also the registered model's and, with a suffix, the endpoint's (3-32 characters in Azure).
MODEL_NAME = re.compile(r"[a-z][a-z0-9-]{1,24}")
RECIPE, TOKENIZER, HELD_OUT = "recipe.yaml", "tokenizer.json", ("eval.jsonl", "eval.jsonl.gz")
COMPANIONS = (RECIPE, TOKENIZER, *HELD_OUT)  # files of a model's folder that are no datasets
UNPLACED = "unplaced"  # the model of a run whose file lies where no model can be read from its path
# Bytes that are read of a companion: more than any good one has, and what is longer is refused for its length.
COMPANION_LIMIT = {RECIPE: 1 << 17, TOKENIZER: 1 << 26}
PIECE = 1 << 20  # bytes of a range that is read and of a block that is written; about ten of them are held


class DatasetError(UserError):
    """The uploaded file cannot be trained on; the message is shown to the person who uploaded it."""


def model_of(blob: str) -> str | None:
    """The model that a blob of the datasets container is for; None when the blob starts no run."""
    folder, _, name = blob.rpartition("/")
    if folder and "/" not in folder and name in COMPANIONS:
        return None
    return folder if MODEL_NAME.fullmatch(folder) else UNPLACED


def misplaced(blob: str) -> str:
    """Why a blob is not ``<model>/<file>.jsonl`` or ``.jsonl.gz``, and where it belongs; "" when it is."""
    folder, _, name = blob.rpartition("/")
    if not folder or "/" in folder:
        return f"{blob} is in the wrong place; drop it as <model>/<file>.jsonl, for example support/{name}."
    if not MODEL_NAME.fullmatch(folder):
        return (
            f"The folder {folder!r} is no model name: 2 to 25 lower-case letters, digits and hyphens, a letter first."
        )
    if not name.endswith((".jsonl", ".jsonl.gz")):
        return f"{name} is not called .jsonl or .jsonl.gz."
    return ""


def take_in(run: Run, measured: Callable[[Recipe], float | None] | None = None) -> None:
    """Check the run's file, and write ``<run-id>/train.jsonl``, ``eval.jsonl`` and ``recipe.json``, and the report.

    Fills in the run's recipe, numbers, links and fingerprint. ``measured`` tells the tokens per second of an earlier
    run by the same recipe. Raises DatasetError, after writing the report, when the person has something to mend, and
    Replaced when the file is not the version that the run is for.
    """
    report = Report(dataset=run.dataset.blob, run_id=run.id, etag=run.dataset.etag, checked_at=utc_now())
    properties = _properties(run)
    if problem := misplaced(run.dataset.blob):
        _name_the_format(run, report, problem)
        _refuse(run, report)
    if properties.size > MAX_BYTES:  # its size is known before three minutes of reading
        report.error("too_large", f"The file has {properties.size:,} bytes; {MAX_BYTES:,} is the limit.", "Split it.")
        _refuse(run, report)
    with ExitStack() as stack:
        stack.enter_context(large_file_slot(properties.size))
        train = stack.enter_context(_split(run, "train.jsonl"))
        held_out = stack.enter_context(_split(run, "eval.jsonl"))
        chunks = stack.enter_context(closing(_chunks(run.dataset.blob, run.dataset.etag, properties.size)))
        recipe, records = examine(
            chunks,
            report,
            name=run.dataset.blob.rpartition("/")[2],
            companions=_companions(run.model, dict(properties.metadata or {}), stack),
            train=train.write,
            held_out=held_out.write,
            instance_type=settings().training_instance_type,
            measured=measured,
            live_base=lambda: _live_base(run.model),
        )
        _check_watched(recipe, report)
        if not report.valid:
            _refuse(run, report)
        train.commit()
        held_out.commit()
        splits = {"train": train, "eval": held_out}
        run.numbers["splits"] = {
            name: {"sha256": writer.digest, "bytes": writer.size} for name, writer in splits.items()
        }
    options = msgspec.json.format(msgspec.json.encode(recipe.training_options()))
    _runs().upload_blob(f"{run.id}/recipe.json", options, overwrite=True)
    _write_report(run, report)
    run.recipe = report.recipe
    run.numbers["dataset"] = msgspec.to_builtins(report.statistics)
    run.numbers["estimate"] = msgspec.to_builtins(report.estimate)
    run.fingerprint = sha256(msgspec.json.encode([same_training(recipe), f"{records:016x}"])).hexdigest()


def _check_watched(recipe: Recipe, report: Report) -> None:
    """Refuse before the training what would refuse every chat after it."""
    if recipe.chat.max_severity is not None and not settings().content_safety_endpoint:
        report.error(
            "invalid_recipe",
            "`chat.max_severity` has every message looked at by Azure AI Content Safety, and this app has none: it"
            " would refuse every chat with the model.",
            "Set the app setting CONTENT_SAFETY_ENDPOINT and drop the file again, or take `max_severity` out.",
        )


def input_url(run: Run, name: str) -> str:
    """Where the training job finds one of the files that ``take_in`` wrote."""
    return f"{settings().blob_service_uri}/{settings().runs_container}/{run.id}/{name}"


def _runs() -> "ContainerClient":
    return azure_clients.container(settings().runs_container)


def _datasets() -> "ContainerClient":
    return azure_clients.container(settings().datasets_container)


def _properties(run: Run) -> "BlobProperties":
    """Of the version that the run is for. Raises Replaced."""
    try:
        properties = _datasets().get_blob_client(run.dataset.blob).get_blob_properties()
    except ResourceNotFoundError:
        raise Replaced(run.dataset.blob) from None
    if properties.etag.strip('"') != run.dataset.etag:
        raise Replaced(run.dataset.blob)
    return properties


def _split(run: Run, name: str) -> BlockWriter:
    return BlockWriter(_runs().get_blob_client(f"{run.id}/{name}"), block_bytes=PIECE)


def _chunks(blob: str, etag: str, size: int) -> Generator[bytes]:
    return read_ranges(_datasets().get_blob_client(blob), etag, size, range_bytes=PIECE)


def _name_the_format(run: Run, report: Report, problem: str) -> None:
    """Say what a misplaced file is, if that can be told, else that it is misplaced."""
    from .dataset.formats import HEAD, foreign_file

    head = b"".join(_chunks(run.dataset.blob, run.dataset.etag, min(HEAD, run.dataset.size)))
    name = run.dataset.blob.rpartition("/")[2]
    foreign = None if name.endswith((".jsonl", ".jsonl.gz")) else foreign_file(head, name)
    if foreign is not None:
        report.error(foreign.code, foreign.message, foreign.fix, line=foreign.line)
    else:
        report.error("wrong_place", problem, "The file's place and name say what it is for.")


def _companions(model: str, metadata: dict[str, str], stack: ExitStack) -> Companions:
    known: dict[str, Any] = {"recipe_name": f"{model}/{RECIPE}", "metadata": metadata}
    for field, name in (("recipe", RECIPE), ("tokenizer", TOKENIZER)):
        try:
            stream = _datasets().download_blob(f"{model}/{name}", offset=0, length=COMPANION_LIMIT[name])
            known[field] = stream.readall()
        except ResourceNotFoundError:
            continue
        except HttpResponseError as error:
            if error.status_code != 416:
                raise
            known[field] = b""  # an empty blob has no range
    for name in HELD_OUT:
        try:
            properties = _datasets().get_blob_client(f"{model}/{name}").get_blob_properties()
        except ResourceNotFoundError:
            continue
        chunks = _held_out_chunks(f"{model}/{name}", properties)
        known |= {"eval_name": name, "eval_chunks": stack.enter_context(closing(chunks))}
        break
    return Companions(**known)


def _held_out_chunks(blob: str, properties: "BlobProperties") -> Generator[bytes]:
    try:
        yield from _chunks(blob, properties.etag.strip('"'), properties.size)
    except Replaced:
        # Only the dataset's own replacement ends the run.
        raise TransientError(f"{blob} was replaced while it was read") from None


def _live_base(model: str) -> str | None:
    """The base of the model of this name that serves now, "" when its record does not tell; None when none serves."""
    record = live_record.read(model)
    if record is None:
        return None
    base = str(record.get("base_model") or "")
    return "" if base == LIVE else base


def _refuse(run: Run, report: Report) -> NoReturn:
    _write_report(run, report)
    raise DatasetError(report.summary())


def _write_report(run: Run, report: Report) -> None:
    from .dataset.markdown import markdown

    reports = azure_clients.container(settings().reports_container)
    reports.upload_blob(f"{run.id}.json", msgspec.json.format(msgspec.json.encode(report)), overwrite=True)
    reports.upload_blob(f"{run.id}.md", markdown(report).encode(), overwrite=True)
    run.links["report"] = f"{reports.url}/{run.id}.md"
    log.info("report run_id=%s valid=%s errors=%d warnings=%d", run.id, report.valid, report.errors, report.warnings)
