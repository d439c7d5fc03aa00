"""The bodies of calls, each waited for so long and no longer: a caller that sends none would hold a thread for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc

from service.errors import Cancelled, InvalidRequest

LOOKS_PER_TIMEOUT = 4


class BodyReader:
    """Reads bodies for any number of threads. gRPC has no timeout for it: a thread of its own gives calls up."""

    def __init__(self, timeout_s: float) -> None:
        """Starts the thread.

        Args:
            timeout_s: How long to wait for a body, or up to a quarter longer; a call's own deadline may be shorter.
        """
        self._timeout_s = timeout_s
        # Calls that are read -> when that began. Setting, popping and copying are single steps under the GIL.
        self._reading: dict[grpc.ServicerContext, float] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._give_up_late_ones, name="late-bodies", daemon=True).start()

    def read(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The body of a call.

        Raises:
            InvalidRequest: It has none.
            Cancelled: The caller gave up, or the body did not come in time.
        """
        self._reading[context] = time.monotonic()
        try:
            body = next(bodies)
        except StopIteration:
            # grpcio ends the stream like this too for a caller that is gone, and nobody reads the answer then.
            raise InvalidRequest("", "the call has no body") from None
        except grpc.RpcError:
            raise _given_up() from None
        finally:
            in_time = self._reading.pop(context, None) is not None
        if not in_time:  # it came while the other thread gave the call up
            raise _given_up()
        return body

    def close(self) -> None:
        """Lets the thread end."""
        self._closed.set()

    def _give_up_late_ones(self) -> None:
        while not self._closed.wait(self._timeout_s / LOOKS_PER_TIMEOUT):
            began_before_s = time.monotonic() - self._timeout_s
            for context, began_s in self._reading.copy().items():
                if began_s < began_before_s and self._reading.pop(context, None) is not None:
                    context.cancel()  # wakes up its reader


def _given_up() -> Cancelled:
    return Cancelled("the caller gave up, or its body did not come in time")
