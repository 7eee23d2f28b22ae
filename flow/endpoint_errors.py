"""What can go wrong between the flow and a model's endpoint.

A module of its own: Prompt Flow loads every node file anew, so a class defined in one would not be the class
that another file catches.
"""


class EndpointError(Exception):
    """The endpoint gave no usable answer. ``kind`` is what callers branch on; the text is fit to be shown.

    ``final``: the request has been sent often enough, and must not be sent elsewhere either.
    """

    kind = "invalid_answer"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int | None = None,
        retry_after: str | None = None,
        param: str | None = None,
        code: str | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.upstream_status = upstream_status
        self.retry_after = retry_after
        self.param = param
        self.code = code
        self.final = final


class EndpointNotConfigured(EndpointError):
    """The flow was not told which endpoint to call, or was told one that tokens must not be sent to."""

    kind = "not_configured"


class EndpointSignInFailed(EndpointError):
    """No Entra token could be had."""

    kind = "sign_in_failed"


class EndpointUnreachable(EndpointError):
    """No connection, or one that closed before it answered."""

    kind = "unreachable"


class EndpointTimeout(EndpointError):
    """The endpoint accepted the request and then was silent for too long."""

    kind = "timeout"


class EndpointRefused(EndpointError):
    """The endpoint answered with an error: ``upstream_status`` (and ``retry_after``, as sent) say which."""

    kind = "refused"


class EndpointAnswerInvalid(EndpointError):
    """The endpoint answered 200 with something that is not a chat completion, or broke off in the middle."""

    kind = "invalid_answer"
