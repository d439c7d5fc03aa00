"""grpc.health.v1 and reflection, on threads of their own: a probe never waits for a timeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
# A check takes microseconds. Reflection keeps a thread for as long as its caller keeps the stream, so it has a pool
# of its own: forgotten streams can lock out other reflection, but not a probe.
HEALTH_THREADS = 2
REFLECTION_THREADS = 2


class _OnPool:
    """A handler that grpcio runs on `experimental_thread_pool` and not on the server's."""

    def __init__(self, behavior: Callable[[Any, grpc.ServicerContext], Any], pool: ThreadPoolExecutor) -> None:
        self._behavior = behavior
        self.experimental_thread_pool = pool

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._behavior(request, context)


class Health:
    """Tells whether the server serves, as a whole ("") and by service name."""

    def __init__(self, services: Sequence[str]) -> None:
        self._names = ("", *services)
        self._health_pool = ThreadPoolExecutor(HEALTH_THREADS, "health")
        self._reflection_pool = ThreadPoolExecutor(REFLECTION_THREADS, "reflection")
        self._servicer = health.HealthServicer(experimental_thread_pool=self._health_pool)
        self._set(NOT_SERVING)  # grpcio's own begins with SERVING
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._reflection = reflection.ReflectionServicer(names)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What to add to the server."""
        request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(
                _OnPool(self._servicer.Check, self._health_pool), request.FromString, response.SerializeToString
            ),
            # It knows its pool, and needs a thread for no longer than a check does: it sends through callbacks.
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._servicer.Watch, request.FromString, response.SerializeToString
            ),
        }
        reflect = grpc.stream_stream_rpc_method_handler(
            _OnPool(self._reflection.ServerReflectionInfo, self._reflection_pool),
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
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

    def close(self) -> None:
        """Lets the threads end; the server has stopped."""
        self._health_pool.shutdown(wait=False)
        self._reflection_pool.shutdown(wait=False)

    def _set(self, status: int) -> None:
        for name in self._names:
            self._servicer.set(name, status)
