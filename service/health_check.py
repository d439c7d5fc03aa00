"""`timeline-ranker health`: asks a server whether it serves. What a container without a gRPC prober runs."""

from __future__ import annotations

import argparse
import sys

import grpc
from grpc_health.v1 import health, health_pb2

from service.client import add_tls_arguments, host_and_port, open_channel

SERVING, NOT_SERVING = 0, 1

_TIMEOUT_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("--target", metavar="HOST:PORT", type=host_and_port, required=True, help="the server to ask")
    add_tls_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Asks once; returns the exit status, with the reason on stderr where the server does not serve."""
    with open_channel(arguments) as channel:
        try:
            status = check(channel, _TIMEOUT_S)
        except grpc.RpcError as error:
            status = f"{error.code().name}: {error.details()}"
    if status == "SERVING":
        return SERVING
    print(f"timeline-ranker health: {arguments.target}: {status}", file=sys.stderr)
    return NOT_SERVING


def check(channel: grpc.Channel, timeout_s: float) -> str:
    """The name of the whole server's health status; raises grpc.RpcError."""
    response = health_pb2.HealthCheckResponse
    call = channel.unary_unary(
        f"/{health.SERVICE_NAME}/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=response.FromString,
    )
    return response.ServingStatus.Name(call(health_pb2.HealthCheckRequest(), timeout=timeout_s).status)
