"""Failures that a client sees, in the shape of OpenAI's errors."""

from typing import Any

INVALID = "invalid_request_error"


class ApiError(Exception):
    """An answer other than success: its HTTP status, and what the client reads.

    `param` names the field at fault, `code` is for programs; `retry_after_s` tells a client that
    did nothing wrong when to come back.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class ClientGoneError(Exception):
    """The client has left; nobody reads an answer."""


def unavailable(message: str) -> ApiError:
    """Return the error of a server that is leaving."""
    return ApiError(503, message, kind="service_unavailable_error", retry_after_s=1)


def overloaded(message: str) -> ApiError:
    """Return the error of a server whose queue is full."""
    return ApiError(
        429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=1
    )


def exhausted(message: str) -> ApiError:
    """Return the error of a device whose memory did not do for what ran."""
    return ApiError(
        503,
        f"{message}; ask for less at once",
        kind="server_error",
        code="out_of_memory",
        retry_after_s=1,
    )


def broken(message: str) -> ApiError:
    """Return the error of a model that has stopped working."""
    return ApiError(500, message, kind="server_error")
