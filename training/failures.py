"""What libraries raise when the disk or the memory is full, told as the one sentence that ends a job."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training import FineTuneError

# EFBIG: a limit on the size of a file, which quotas on a mount show as.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and tokenizers (Rust) give the number in their text; torch.save gives only that its writer stopped.
DISK_FULL_TEXTS = (
    *(f"(os error {number})" for number in DISK_FULL),
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing",
    "inline_container.cc",
)
MEMORY_FULL_TEXTS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")

GPU_ADVICE = (
    "lower batch_size or max_length, use the method lora or qlora, or train on a machine with a bigger GPU "
    "(compute.instance_type)"
)
DISK_ADVICE = "use a machine with a bigger disk, or free space where the job writes, and start the run again"


def sentence(error: BaseException) -> str | None:
    """Return what happened and what to do, or None when the error is none of the known ones."""
    for each in _chain(error):
        name, text = type(each).__name__, str(each)
        if _fills_disk(each):
            where = getattr(each, "filename", None)
            return f"the disk is full{f': {where} could not be written' if where else ''}; {DISK_ADVICE}"
        if name == "OutOfMemoryError":  # torch's, by name: torch may not be imported yet
            return f"the GPU's memory is too small; {GPU_ADVICE}"
        if isinstance(each, MemoryError) or any(words in text for words in MEMORY_FULL_TEXTS):
            return (
                "the machine's memory is too small; lower batch_size or max_length, choose a smaller base_model, or a "
                "machine with more memory (compute.instance_type)"
            )
        if "jinja2" in type(each).__module__ and name == "TemplateError":
            # Not what it says: a template may put the conversation into its complaint.
            return (
                "the base model's chat template does not accept these conversations, or the recipe's questions; change "
                "their roles, or choose another base_model"
            )
    return None


def is_disk_full(error: BaseException) -> bool:
    """Return whether ``error``, or what it came from, says that nothing more can be written."""
    return any(_fills_disk(each) for each in _chain(error))


def _fills_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL
    return not isinstance(error, FineTuneError) and any(words in str(error) for words in DISK_FULL_TEXTS)


@contextmanager
def disk_for(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Turn a full disk into a FineTuneError that says what was written, where, and how much it is.

    ``needed``: bytes of ``what``. Nothing is measured beforehand: a mount of cloud storage tells its cache's free
    space, or none.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        try:
            free = f", where {_size(shutil.disk_usage(folder).free)} are free"
        except OSError:
            free = ""
        raise FineTuneError(
            f"the disk is full: {what} needs about {_size(needed)} in {folder}{free}; {DISK_ADVICE}"
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _size(count: float) -> str:
    """Return bytes as a person writes them, in powers of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("bytes", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
