"""The two kinds of failure that a person is told of: theirs to mend, and Azure's."""


class UserError(Exception):
    """Something that the person who dropped the file can mend; the message says what, where and how."""

    status = 422


class TransientError(Exception):
    """Azure could not do it this time (throttled, unavailable, no connection); the same step may work later."""


class StepError(Exception):
    """Azure refused a step for good; the run ends as failed with this message."""
