"""What can go wrong with a call, whose fault it is, and the status that the caller gets."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2


class InvalidRequest(Exception):  # noqa: N818 - it says what the request is, like the status that it becomes
    """The caller's fault: the request contradicts itself, the API or a limit.

    Attributes:
        field: Path of the field at fault, such as `candidates.tweets.values`; empty where it is the whole message.
        description: What is wrong with it, in a sentence without the field's name.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}" if field else description)
        self.field = field
        self.description = description


class UnknownModel(Exception):  # noqa: N818
    """The caller asks for a model label or version that is not served."""


class NotAllowed(Exception):  # noqa: N818
    """The caller is known, and may not call."""


class DeadlinePassed(Exception):  # noqa: N818
    """The caller no longer waits for the answer."""


class Overloaded(Exception):  # noqa: N818
    """Other callers leave no room; later there may be.

    Attributes:
        retry_after_ms: When to come back at the earliest.
    """

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class TooManyCalls(Overloaded):
    """The server works on as many calls as it takes; this one was not even read."""


class Cancelled(Exception):  # noqa: N818
    """The caller gave up."""


class NotServing(Exception):  # noqa: N818
    """The server is not ready yet, or about to leave."""


# One line per kind of error. Whatever is not in here is our fault: INTERNAL, with a text that tells nothing.
STATUS_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Cancelled: grpc.StatusCode.CANCELLED,
    NotServing: grpc.StatusCode.UNAVAILABLE,
}
INTERNAL_TEXT = "internal error; the server's log says more"


def status_code(error: Exception) -> grpc.StatusCode:
    """The code that a call ends with if `error` ended it."""
    return STATUS_CODES.get(type(error), grpc.StatusCode.INTERNAL)


def status_proto(error: Exception) -> status_pb2.Status:
    """The whole status: code, message, and the details that `google.rpc` has for a bad request and for an overload."""
    code = status_code(error)
    message = INTERNAL_TEXT if code is grpc.StatusCode.INTERNAL else str(error)
    status = status_pb2.Status(code=code.value[0], message=message)
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
        _add_detail(status, error_details_pb2.BadRequest(field_violations=[violation]))
    elif isinstance(error, Overloaded):
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(error.retry_after_ms)
        _add_detail(status, info)
    return status


def _add_detail(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
