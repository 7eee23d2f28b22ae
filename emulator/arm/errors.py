"""Azure's error envelope."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse


class ArmError(Exception):
    """An answer other than success: HTTP status, Azure's error code, a message that helps, and the inner code.

    ``details``: (code, message) of what is behind it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        inner: str = "",
        headers: dict[str, str] | None = None,
        details: Sequence[tuple[str, str]] = (),
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.inner = inner
        self.headers = headers or {}
        self.details = details

    def response(self) -> JSONResponse:
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "details": [
                {"code": code, "message": message, "details": [], "additionalInfo": []}
                for code, message in self.details
            ],
            "additionalInfo": [],
        }
        if self.inner:
            error["additionalInfo"] = [
                {
                    "type": "InnerError",
                    "info": {"value": {"code": self.code, "innerError": {"code": self.inner}}},
                }
            ]
        headers = {"x-ms-correlation-request-id": str(uuid4()), **self.headers}
        return JSONResponse({"error": error}, self.status, headers)


def not_found(kind: str, name: str) -> ArmError:
    return ArmError(404, "UserError", f"Not found: {kind} {name} does not exist in this workspace.", "NotFoundError")


def bad_request(message: str, inner: str = "BadArgument") -> ArmError:
    return ArmError(400, "UserError", message, inner)
