"""What one request may ask for. A request beyond a limit is refused, never cut down."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server; all of them stand in DescribeModel and are flags of `serve`.

    Attributes:
        rows_max: Candidate Tweets in a request.
        authors_max: Authors in a request.
        columns_max: Columns in a table, a vector counted by its width.
        vocabulary_max: Categories in a categorical column.
        string_bytes_max: Bytes of UTF-8 of any string in a request.
        message_bytes_max: Bytes of a request.
        streams_max: Calls at a time on one connection.
        default_deadline_ms: How long the server works on a call that comes without a deadline.
    """

    rows_max: int = 5_000
    authors_max: int = 5_000
    columns_max: int = 2_048
    vocabulary_max: int = 10_000
    string_bytes_max: int = 256
    message_bytes_max: int = 32 << 20
    streams_max: int = 1_000
    default_deadline_ms: int = 1_000

    def __post_init__(self) -> None:
        for field in fields(self):
            # 2^31 - 1: gRPC takes its settings as int32.
            if not 1 <= getattr(self, field.name) < 1 << 31:
                raise ValueError(f"{field.name} {getattr(self, field.name)} is not between 1 and {(1 << 31) - 1}")
        # A request of rows_max Tweets needs their ids and times at the least: up to 10 bytes each, and one for the
        # author's index. Were the message limit lower, rows_max would promise what no request can use.
        if self.message_bytes_max < 21 * self.rows_max:
            raise ValueError(
                f"message_bytes_max {self.message_bytes_max} is too small for rows_max {self.rows_max}: "
                f"ids and times alone can take {21 * self.rows_max} bytes"
            )
