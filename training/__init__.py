"""The training job: fine-tune a chat model on a JSON Lines file and export it as an MLflow model."""


class FineTuneError(Exception):
    """A mistake that a person can mend; the job ends with exit code 1 and the text as its last line."""
