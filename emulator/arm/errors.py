"""Azure's error envelope."""

from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse


class ArmError(Exception):
    """An answer other than success: HTTP status, Azure's error code, a message that helps, and the inner code."""

    def __init__(self, status: int, code: str, message: str, inner: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.inner = inner
        self.headers = headers or {}

    def response(self) -> JSONResponse:
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "details": [],
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
