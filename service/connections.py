"""How many connections there may be, how long one lasts, and what it must not do."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field, fields

# Descriptors for all but connections: the files of models and log, sockets that listen, threads that poll.
DESCRIPTORS_BESIDE = 96
PING_STRIKES = 2
CONNECTIONS_MAX = 4_000  # unless said otherwise, or fewer where the system lets a process have fewer


@dataclass(frozen=True, slots=True)
class Connections:
    """What holds for the connections of one server; each a flag of `serve`.

    Attributes:
        connections_max: Open ones at a time; further ones are closed at once. By itself CONNECTIONS_MAX, or as many as
            the hard limit on descriptors has room for.
        connection_age_ms: A connection that old, a tenth more or less as gRPC draws it, is told to go away: clients
            spread over the servers that there are by then. Calls under way on it have `grace_ms`.
        keepalive_ms: A connection that is silent for so long is pinged, and closed if it is silent for as long again;
            one that has not said what HTTP/2 and TLS begin with is closed at once.
        ping_interval_min_ms: Clients that ping more often than that three times are sent away (too_many_pings).
        header_bytes_max: Of a call's headers, counted as HTTP/2 does, with 32 bytes on top of each one's own.
    """

    connections_max: int = field(default_factory=lambda: min(CONNECTIONS_MAX, _connections_possible()))
    connection_age_ms: int = 300_000
    keepalive_ms: int = 60_000
    ping_interval_min_ms: int = 10_000
    header_bytes_max: int = 16_384

    def __post_init__(self) -> None:
        for setting in fields(self):
            # 2^31 - 1: gRPC takes its settings as int32.
            if not 1 <= getattr(self, setting.name) < 1 << 31:
                raise ValueError(f"{setting.name} {getattr(self, setting.name)} is not between 1 and {(1 << 31) - 1}")
        # Else no silent connection is ever found out: it is told to go away first, and nobody is there to hear it.
        if 2 * self.keepalive_ms > self.connection_age_ms:
            raise ValueError(
                f"connection_age_ms {self.connection_age_ms} is shorter than twice keepalive_ms {self.keepalive_ms}"
            )

    def options(self, grace_ms: int) -> tuple[tuple[str, int], ...]:
        """As gRPC takes them. It passes over names that it does not know: a test sees each of these at work."""
        return (
            ("grpc.max_allowed_incoming_connections", self.connections_max),
            ("grpc.max_connection_age_ms", self.connection_age_ms),
            ("grpc.max_connection_age_grace_ms", grace_ms),
            ("grpc.keepalive_time_ms", self.keepalive_ms),
            ("grpc.http2.ping_timeout_ms", self.keepalive_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", self.ping_interval_min_ms),
            ("grpc.http2.max_ping_strikes", PING_STRIKES),
            ("grpc.max_metadata_size", self.header_bytes_max),
            ("grpc.absolute_max_metadata_size", self.header_bytes_max),
            ("grpc.server_handshake_timeout_ms", self.keepalive_ms),
        )

    def reserve_descriptors(self) -> None:
        """Sees to it that the process may have as many descriptors as connections and the rest need.

        Raises:
            OSError: The system does not let it.
        """
        needed = self.connections_max + DESCRIPTORS_BESIDE
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise OSError(
                f"connections_max {self.connections_max} takes {needed} descriptors, but ulimit -Hn is {hard}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _connections_possible() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return CONNECTIONS_MAX if hard == resource.RLIM_INFINITY else max(1, hard - DESCRIPTORS_BESIDE)
