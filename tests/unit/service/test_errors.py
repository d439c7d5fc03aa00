"""Every error has a code; the caller learns what is theirs to know, and no more."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from service import errors
from service.errors import DeadlinePassed, InvalidRequest, NotServing, UnknownModel


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidRequest("viewer_id", "must not be 0"), grpc.StatusCode.INVALID_ARGUMENT, "viewer_id: must not be 0"),
        (InvalidRequest("", "no message"), grpc.StatusCode.INVALID_ARGUMENT, "no message"),
        (UnknownModel("no model 'x'"), grpc.StatusCode.NOT_FOUND, "no model 'x'"),
        (DeadlinePassed("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "too late"),
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


def test_other_errors_carry_no_details() -> None:
    """Nothing but bad requests has a field to name."""
    assert not errors.status_proto(UnknownModel("x")).details
