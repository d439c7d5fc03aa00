"""The floor of a gRPC server in Python: reads a request's bytes and answers as many bytes as it was told to.

`python -m loadtest.echo_server BYTES` prints its port on stdout and serves until it is ended. Same executor and worker
count as the real server; no parsing, no model, no metrics.
"""

from __future__ import annotations

import sys
from concurrent import futures

import grpc

METHOD = "/loadtest.Floor/Echo"
WORKERS = 8


def main(argv: list[str]) -> None:
    """Serves; `argv` is the number of bytes to answer."""
    answer = bytes(int(argv[0]))

    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: ARG001 - grpc passes both
        return answer

    handler = grpc.method_handlers_generic_handler(
        "loadtest.Floor", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    )
    server = grpc.server(
        futures.ThreadPoolExecutor(WORKERS),
        handlers=[handler],
        options=[("grpc.max_receive_message_length", -1)],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1:])
