"""The gRPC server around the pipeline: threads, deadlines, statuses, start and stop."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import grpc
from grpc_status import rpc_status
from prometheus_client import start_http_server

from service import errors, pipeline
from service.admission import Admission
from service.body import BodyReader
from service.config import Config
from service.cpus import cpus
from service.encode import served_record
from service.errors import TooManyCalls
from service.fast_decode import RequestDecoder
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.health import Health, OnPool
from service.metrics import MethodMetrics, Metrics
from service.model import LoadResult
from service.pipeline import Answer, Call, Ranking
from service.served_log import LogFiles, ServedLog, logs_features
from service.serving import Serving
from service.shadow import Shadow, ShadowMetrics
from service.tls import Certificates, check_caller

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["TimelineRankingService"]
LOADS_MAX = 20
REFUSING_THREADS = 2  # A refusal takes microseconds; counting calls, a millisecond now and then.
# With more rows than this in the gate the shadow model rests.
SHADOW_ROWS_RUNNING_PER_CPU = 500
# A server that is to stop counts as left alone when no call has come for so long, and stops after so long in any case.
LEFT_ALONE_S = 0.1
LEFT_ALONE_WITHIN_S = 2.0
# Later than any real deadline: grpcio gives calls without one a time_remaining() of centuries.
NO_DEADLINE_S = 10 * 365 * 86_400.0


class Server:
    """Serves models. `start`, then `serve` as often as there is something new, then `drain`.

    Attributes:
        metrics: What it counts.
    """

    def __init__(self, config: Config, arms: Iterable[tuple[str, str]] = ()) -> None:
        """Makes a server that listens nowhere yet.

        Args:
            config: The settings.
            arms: All pairs of experiment and arm.

        Raises:
            OSError: The served log can not be written to.
            TlsError: The TLS files are no good.
        """
        self._config = config
        self.metrics = Metrics(SERVICE.full_name, [method.name for method in SERVICE.methods], arms)
        self._certificates = None
        if config.tls is not None:
            reloads = self.metrics.tls_reloads
            self._certificates = Certificates(config.tls, lambda used: reloads["loaded" if used else "refused"].inc())
        self._health = Health([SERVICE.full_name])
        self._log = None
        if config.served_log is not None:
            self._log = ServedLog(LogFiles(config.served_log), on_drop=self.metrics.served_log_dropped.inc)
        self._ranking = _RankingHandler(config, self.metrics, self._log)
        self._pool = ThreadPoolExecutor(config.threads, "rank")
        limits = config.limits
        self._grpc = grpc.server(
            self._pool,
            handlers=[self._ranking, *self._health.handlers()],
            options=(
                ("grpc.max_receive_message_length", limits.message_bytes_max),
                ("grpc.max_send_message_length", -1),  # an answer is smaller than its request
                ("grpc.max_concurrent_streams", limits.streams_max),
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, and shall fail
                *config.connections.options(config.grace_ms),
            ),
        )
        self._ports = (0, 0)

    @property
    def grpc_address(self) -> str:
        """HOST:PORT of gRPC, once started."""
        return _address(self._config.host, self._ports[0])

    @property
    def metrics_address(self) -> str:
        """HOST:PORT of the metrics, once started."""
        return _address(self._config.host, self._ports[1])

    def start(self) -> None:
        """Binds both ports and answers: health says NOT_SERVING, the ranking service UNAVAILABLE.

        Raises:
            OSError: A port is taken.
        """
        host = self._config.host
        wanted = _address(host, self._config.grpc_port)
        try:
            if self._certificates is None:
                grpc_port = self._grpc.add_insecure_port(wanted)
            else:
                grpc_port = self._grpc.add_secure_port(wanted, self._certificates.credentials())
        except RuntimeError as error:
            raise OSError(f"--grpc-port: cannot listen on {wanted}; is it taken?") from error
        metrics_port = self._config.metrics_port
        try:
            self._http, self._http_thread = start_http_server(metrics_port, host, registry=self.metrics.registry)
        except OSError as error:
            raise OSError(
                f"--metrics-port: cannot listen on {_address(host, metrics_port)}: {error.strerror}"
            ) from error
        self._ports = (grpc_port, self._http.server_port)
        self._grpc.start()

    def serve(self, serving: Serving) -> None:
        """Answers with `serving`, whose models are warm, from now on; calls under way end on what they began on."""
        self.metrics.serve(serving.models.values())
        self._ranking.admission.start({m.version: m.scorer.cost_points for m in serving.models.values()})
        self._ranking.serving = serving
        self._health.serving()

    @property
    def loads(self) -> Mapping[str, LoadResult]:
        """Version -> what became of the latest try to load it, the oldest first; of the LOADS_MAX latest."""
        return self._ranking.loads

    def report_load(self, version: str, result: LoadResult) -> None:
        """Counts a try to load a version, and tells of it in DescribeModel."""
        self.metrics.loads["refused" if result.faults else "loaded"].inc()
        others = [(v, load) for v, load in self.loads.items() if v != version]
        self._ranking.loads = dict([*others, (version, result)][-LOADS_MAX:])

    def drain(self, wait: Callable[[float], Any] = time.sleep) -> None:
        """Stops the server without failing a call; `wait` takes seconds."""
        # 1. Say so, and go on: callers and balancers need a while to notice.
        self._health.leaving()
        if self._ranking.serving is not None:
            logger.info("draining for %d ms", self._config.drain_ms)
        wait(self._config.drain_ms / 1e3)
        # 2. Send callers elsewhere until none comes: a call that grpcio has not handed over when it stops ends with
        # CANCELLED (grpc/grpc#41785), which no client tries again.
        self._ranking.leaving = True
        self._wait_until_left_alone()
        # 3. Take no further calls; those under way have the grace period.
        stopped = self._grpc.stop(NO_DEADLINE_S)
        self._health.end_watches()
        if not stopped.wait(self._config.grace_ms / 1e3):
            # 4. What somebody still waits for is cut off; what was served gets into the log.
            logger.warning("%d calls were cut off after %d ms", self._ranking.waited_for, self._config.grace_ms)
            self._grpc.stop(None)
        if self._log is not None:
            self._log.close()
        # 5. Let go of threads and ports.
        self._pool.shutdown(wait=False)
        self._health.close()
        self._ranking.close()
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()

    def _wait_until_left_alone(self) -> None:
        give_up_s = time.monotonic() + LEFT_ALONE_WITHIN_S
        seen = -1
        while seen != self._ranking.sent_away and time.monotonic() < give_up_s:
            seen = self._ranking.sent_away
            time.sleep(LEFT_ALONE_S)


class _Method(NamedTuple):
    """One method of the ranking service: what answers it, its metrics, and whether its calls take turns."""

    run: Callable[[bytes, Serving, RequestDecoder, Call], Answer | bytes]
    metrics: MethodMetrics
    takes_turns: bool


class _RankingHandler(grpc.GenericRpcHandler):
    """Answers the ranking service's methods from bytes to bytes, so that a body that does not parse is ours to refuse.

    Attributes:
        serving: What answers; None until a model is loaded. Replaced as one reference, read once per call.
        loads: Version -> what became of the latest try to load it. Replaced, never changed.
        admission: Gives calls their turn.
        leaving: Whether calls are sent away because the server is about to stop.
        sent_away: How many were.
    """

    def __init__(self, config: Config, metrics: Metrics, log: ServedLog | None) -> None:
        self.leaving = False
        self.sent_away = 0  # written by grpcio's one thread that hands calls over
        self.serving: Serving | None = None
        self.loads: Mapping[str, LoadResult] = {}
        self.admission = Admission(cpus())
        metrics.queue_rows.set_function(lambda: self.admission.rows)
        self._log = log
        self._log_features = config.log_features
        self._allowed = config.tls.allow if config.tls is not None else frozenset()
        self._decoder = RequestDecoder(config.limits)
        self._metrics = metrics
        self._methods = {
            f"/{SERVICE.full_name}/{name}": _Method(run, metrics.methods[name], run is not pipeline.describe_model)
            for name, run in pipeline.METHODS.items()
        }
        # Calls that a thread works on. Adding to and discarding from a set are single steps under the GIL.
        self._running: set[grpc.ServicerContext] = set()
        # A place for every thread: no call that is taken waits for one, so none grows old unseen. Taking one out and
        # putting it back are single steps under the GIL.
        self._places = [None] * config.threads
        self._refusing_pool = ThreadPoolExecutor(REFUSING_THREADS, "refuse")
        # As long as calls have to end when the server stops.
        self._bodies = BodyReader(config.grace_ms / 1e3)
        self._shadow = None
        if config.shadow_model is not None:
            busy_rows = SHADOW_ROWS_RUNNING_PER_CPU * cpus()
            self._shadow = Shadow(
                config.shadow_model,
                config.shadow_share,
                lambda request, serving, call: pipeline.rank_timeline(request, serving, self._decoder, call),
                lambda: self.admission.rows > busy_rows,
                ShadowMetrics(metrics.registry),
            )

    @property
    def waited_for(self) -> int:
        """Calls that a thread works on right now, and whose callers have not given up."""
        return sum(context.is_active() for context in list(self._running))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called by grpcio as soon as a call's headers are there.

        A handler of streams gets the call as it is, whether its body comes or not: so every place taken is given
        back, and a refusal reads nothing. On the wire a stream of one message is what a unary call sends.
        """
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        arrived_ns = time.perf_counter_ns()
        if self.leaving:
            self.sent_away += 1
            return self._refusal(self._send_away, method, arrived_ns)
        try:
            self._places.pop()
        except IndexError:
            return self._refusal(self._refuse, method, arrived_ns)
        return grpc.stream_unary_rpc_method_handler(functools.partial(self._answer, method, arrived_ns))

    def _refusal(
        self, refuse: Callable[..., NoReturn], method: _Method, arrived_ns: int
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Handles a call, unread, on threads that are there for that alone."""
        refuse = functools.partial(refuse, method, arrived_ns)
        return grpc.stream_unary_rpc_method_handler(OnPool(refuse, self._refusing_pool))

    def close(self) -> None:
        """Lets the threads end; the server has stopped."""
        self._refusing_pool.shutdown(wait=False)
        self._bodies.close()
        if self._shadow is not None:
            self._shadow.close()

    def _refuse(
        self, method: _Method, arrived_ns: int, _bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> NoReturn:
        error = TooManyCalls("the server has all the calls that it can take", self.admission.retry_after_ms)
        self._metrics.refused[TooManyCalls].inc()
        self._abort(method, arrived_ns, error, context)

    def _send_away(
        self, method: _Method, arrived_ns: int, _bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> NoReturn:
        self._abort(method, arrived_ns, errors.NotServing("the server is about to stop"), context)

    def _abort(self, method: _Method, arrived_ns: int, error: Exception, context: grpc.ServicerContext) -> NoReturn:
        self._metrics.begun(method.metrics)
        self._count_end(method, errors.status_code(error), arrived_ns, None)
        context.abort_with_status(rpc_status.to_status(errors.status_proto(error)))

    def _answer(
        self, method: _Method, arrived_ns: int, bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        self._running.add(context)
        self._metrics.begun(method.metrics)
        code, counted = grpc.StatusCode.OK, None
        try:
            if self._allowed:
                check_caller(context.peer_identities(), self._allowed)
            if method.takes_turns:
                self.admission.check_unread(self._remaining_ns(context))
            body = self._bodies.read(bodies, context)
            answer = self._run(method, arrived_ns, body, context)
            if isinstance(answer, bytes):
                return answer
            counted = answer
            if self._log is not None and answer.ranking is not None:
                self._log_served(self._log, answer.ranking, answer.body, body)
            if self._shadow is not None and answer.ranking is not None and self.serving is not None:
                self._shadow.offer(self.serving, answer.ranking, body, answer.body)
            return answer.body
        except Exception as error:
            code = errors.status_code(error)
            if (refused := self._metrics.refused.get(type(error))) is not None:
                refused.inc()
            if code is grpc.StatusCode.INTERNAL:
                logger.exception("a call failed")
            context.abort_with_status(rpc_status.to_status(errors.status_proto(error)))
        finally:
            self._count_end(method, code, arrived_ns, counted)
            self._running.discard(context)
            self._places.append(None)

    def _count_end(self, method: _Method, code: grpc.StatusCode, arrived_ns: int, answer: Answer | None) -> None:
        if self._metrics.ended(method.metrics, code, time.perf_counter_ns() - arrived_ns, answer):
            # Elsewhere: no caller is to wait for it. Once the server has stopped only a scrape would tell.
            with contextlib.suppress(RuntimeError):
                self._refusing_pool.submit(self._metrics.count)

    def _run(self, method: _Method, arrived_ns: int, body: bytes, context: grpc.ServicerContext) -> Answer | bytes:
        serving = self.serving
        if serving is None:
            raise errors.NotServing("no model is loaded yet")
        call = Call(
            now_ms=time.time_ns() // 1_000_000,
            clock=time.perf_counter_ns,
            arrived_ns=arrived_ns,
            deadline_ns=time.perf_counter_ns() + self._remaining_ns(context),
            admission=self.admission,
            on_end=context.add_callback,
            make_id=_make_id,
            loads=self.loads,
        )
        return method.run(body, serving, self._decoder, call)

    def _remaining_ns(self, context: grpc.ServicerContext) -> float:
        """Until the caller stops waiting."""
        remaining_s = context.time_remaining()
        if remaining_s is None or remaining_s > NO_DEADLINE_S:
            return self._decoder.limits.default_deadline_ms * 1e6
        return remaining_s * 1e9

    def _log_served(self, log: ServedLog, ranking: Ranking, response: bytes, request: bytes) -> None:
        record = served_record(
            ranking.timeline,
            ranking.inclusion_probabilities,
            viewer_id=ranking.viewer_id,
            served_at_ms=ranking.served_at_ms,
            response=response,
            request=request if logs_features(ranking.request_id, self._log_features) else b"",
        )
        log.offer(record)


def _make_id() -> str:
    return uuid.uuid4().hex


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
