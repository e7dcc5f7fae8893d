"""`ApiError`: what a client is told in place of an answer, in OpenAI's form."""

from __future__ import annotations

from typing import Any, Optional

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP
        message: what was wrong, where, and what to do
        param: the field of the request
        code: a word for programs
    """

    def __init__(self, status: int, message: str, param: Optional[str] = None, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(field: str, why: str, code: Optional[str] = None) -> ApiError:
    """A 400 for a field that is wrong, or cannot be honoured."""
    return ApiError(400, f"{field}: {why}", field, code)
