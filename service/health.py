"""grpc.health.v1 and reflection, on threads of their own: a probe never waits for a timeline."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service import errors
from service.body import BodyReader

M = TypeVar("M", bound=Message)

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# A check takes microseconds, but for the wait for its few bytes: calls whose body does not come hold a thread each, for
# so long. Reflection keeps a thread for as long as its caller goes on asking, so it has a pool of its own.
HEALTH_THREADS = 8
BODY_TIMEOUT_S = 1.0
REFLECTION_THREADS = 8
REFLECTION_IDLE_S = 5.0


class OnPool:
    """A handler that grpcio runs on `experimental_thread_pool` and not on the server's."""

    def __init__(self, behavior: Callable[[Any, grpc.ServicerContext], Any], pool: ThreadPoolExecutor) -> None:
        self._behavior = behavior
        self.experimental_thread_pool = pool

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Runs the handler."""
        return self._behavior(request, context)


class _Watch:
    """Health's `Watch`, which grpcio lets send through a callback and hold no thread, with an end to it."""

    experimental_non_blocking = True

    def __init__(
        self,
        servicer: health.HealthServicer,
        names: Sequence[str],
        read: Callable[[Iterator[bytes], grpc.ServicerContext], Any],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._servicer = servicer
        self._names = names
        self._read = read
        self.experimental_thread_pool = pool
        # The streams that are open. Adding, discarding and copying are single steps under the GIL.
        self._streams: set[Callable[[Any], None]] = set()

    def __call__(self, bodies: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        request = self._read(bodies, context)
        self._streams.add(send)
        if not context.add_callback(lambda: self._streams.discard(send)):  # it has ended by now
            self._streams.discard(send)
        elif request.service in self._names:
            self._servicer.Watch(request, context, send)
        else:  # grpcio's servicer would remember every name that anybody makes up
            send(health_pb2.HealthCheckResponse(status=UNKNOWN))

    def end(self) -> None:
        """Ends all open streams."""
        for send in self._streams.copy():
            send(None)


class Health:
    """Tells whether the server serves, as a whole ("") and by service name."""

    def __init__(self, services: Sequence[str]) -> None:
        self._names = ("", *services)
        self._health_pool = ThreadPoolExecutor(HEALTH_THREADS, "health")
        self._reflection_pool = ThreadPoolExecutor(REFLECTION_THREADS, "reflection")
        self._servicer = health.HealthServicer()
        self._set(NOT_SERVING)  # grpcio's own begins with SERVING
        self._bodies = BodyReader(BODY_TIMEOUT_S)
        self._questions = BodyReader(REFLECTION_IDLE_S)
        self._watch = _Watch(self._servicer, self._names, self._read, self._health_pool)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._reflection = reflection.ReflectionServicer(names)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What to add to the server."""
        response = health_pb2.HealthCheckResponse
        methods: dict[str, grpc.RpcMethodHandler[bytes, health_pb2.HealthCheckResponse]] = {
            # Of streams, so that the wait for a body is ours to end.
            "Check": grpc.stream_unary_rpc_method_handler(
                OnPool(self._check, self._health_pool), response_serializer=response.SerializeToString
            ),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, response_serializer=response.SerializeToString),
        }
        reflect: grpc.RpcMethodHandler[bytes, reflection_pb2.ServerReflectionResponse] = (
            grpc.stream_stream_rpc_method_handler(
                OnPool(self._reflect, self._reflection_pool),
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        )
        return (
            grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods),
            grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": reflect}),
        )

    def serving(self) -> None:
        """From now on the server serves."""
        self._set(SERVING)

    def leaving(self) -> None:
        """From now on and for good the server does not serve."""
        self._servicer.enter_graceful_shutdown()

    def end_watches(self) -> None:
        """Ends the streams of those who watch: they would keep a stopping server for its whole grace period."""
        self._watch.end()

    def close(self) -> None:
        """Lets the threads end; the server has stopped."""
        self._bodies.close()
        self._questions.close()
        self._health_pool.shutdown(wait=False)
        self._reflection_pool.shutdown(wait=False)

    def _check(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        return self._servicer.Check(self._read(bodies, context), context)

    def _read(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> health_pb2.HealthCheckRequest:
        try:
            body = self._bodies.read(bodies, context)
        except (errors.InvalidRequest, errors.Cancelled) as error:
            context.abort(errors.status_code(error), str(error))
        return _parse(health_pb2.HealthCheckRequest, body, context)

    def _reflect(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        return self._reflection.ServerReflectionInfo(self._asked(bodies, context), context)

    def _asked(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        """The questions of a stream, until it ends or nothing comes for a while."""
        with contextlib.suppress(errors.InvalidRequest, errors.Cancelled):
            while True:
                body = self._questions.read(bodies, context)
                yield _parse(reflection_pb2.ServerReflectionRequest, body, context)

    def _set(self, status: int) -> None:
        for name in self._names:
            self._servicer.set(name, status)


def _parse(kind: type[M], body: bytes, context: grpc.ServicerContext) -> M:
    """The message in `body`; grpcio, were it to parse, would call bytes that are none an error of the server's."""
    try:
        return kind.FromString(body)
    except DecodeError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the body is not a {kind.DESCRIPTOR.full_name}")
