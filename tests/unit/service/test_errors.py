"""Every error has a code; the caller learns what is theirs to know, and no more."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from service import errors
from service.errors import (
    Cancelled,
    DeadlinePassed,
    InvalidRequest,
    NotAllowed,
    NotServing,
    Overloaded,
    TooManyCalls,
    UnknownModel,
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidRequest("viewer_id", "must not be 0"), grpc.StatusCode.INVALID_ARGUMENT, "viewer_id: must not be 0"),
        (InvalidRequest("", "no message"), grpc.StatusCode.INVALID_ARGUMENT, "no message"),
        (UnknownModel("no model 'x'"), grpc.StatusCode.NOT_FOUND, "no model 'x'"),
        (NotAllowed("not you"), grpc.StatusCode.PERMISSION_DENIED, "not you"),
        (DeadlinePassed("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "too late"),
        (Overloaded("too many", 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"),
        (TooManyCalls("too many", 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"),
        (Cancelled("gone"), grpc.StatusCode.CANCELLED, "gone"),
        (NotServing("starting"), grpc.StatusCode.UNAVAILABLE, "starting"),
        (ValueError("/etc/secret"), grpc.StatusCode.INTERNAL, errors.INTERNAL_TEXT),
    ],
)
def test_status(error: Exception, code: grpc.StatusCode, message: str) -> None:
    """Code and text; of our own failures the text says nothing."""
    status = errors.status_proto(error)

    assert (status.code, status.message) == (code.value[0], message)
    assert errors.status_code(error) is code


def test_bad_request_names_the_field() -> None:
    """Machines find the field in a google.rpc.BadRequest."""
    (packed,) = errors.status_proto(InvalidRequest("candidates.tweets.values", "too few")).details

    detail = error_details_pb2.BadRequest()
    assert packed.Unpack(detail)
    (violation,) = detail.field_violations
    assert (violation.field, violation.description) == ("candidates.tweets.values", "too few")


def test_an_overload_says_when_to_retry() -> None:
    """Clients that know google.rpc.RetryInfo wait that long."""
    (packed,) = errors.status_proto(Overloaded("too many", 1_250)).details

    detail = error_details_pb2.RetryInfo()
    assert packed.Unpack(detail)
    assert detail.retry_delay.ToMilliseconds() == 1_250


def test_other_errors_carry_no_details() -> None:
    """They have neither a field to name nor a time to come back at."""
    assert not errors.status_proto(UnknownModel("x")).details
