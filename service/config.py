"""The settings of `serve`: each a flag, and an environment variable of the same name.

A flag wins over the environment, the environment over the default. A bad value refuses to start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from service.connections import Connections
from service.cpus import cpus
from service.limits import Limits
from service.tls import Tls

ENVIRONMENT_PREFIX = "TIMELINE_RANKER_"
DEFAULT_BUNDLE = Path(__file__).with_name("default_bundle")


class ConfigError(ValueError):
    """A setting is no good; the text names it and its value."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one server.

    Attributes:
        bundle: Directory of the one model to serve; None: those of the repository.
        model_repository: Directory of the models to serve by label, and to look at for new ones; None: the bundle.
        model_check_ms: How often to look.
        slowdown_max: How many times as long as the serving model a new one may take for the same Tweets.
        policy: TOML file with the timeline policy; None: the defaults.
        experiments: TOML file with the experiments; None: none.
        served_log: Directory that what is served is written to; None: nowhere.
        log_features: Share of the requests that are written to it as received, 0 to 1.
        shadow_model: Label of the model that is compared with those that serve, see service/shadow.py; None: none.
        shadow_share: Of the timelines, 0 to 1.
        host: Address to listen on.
        grpc_port: 0: any free one.
        metrics_port: 0: any free one.
        threads: Calls that are worked on or wait for their turn at a time; further ones are refused.
        intra_op_threads: Threads that one run of the model may use.
        drain_ms: How long the server goes on, not serving by its own word, before it stops taking calls: callers
            need that long to notice.
        grace_ms: How long calls under way may then take to end.
        limits: What a request may ask for.
        connections: What holds for connections.
        tls: How the gRPC port is secured; None: not at all.
    """

    bundle: Path | None
    model_repository: Path | None
    model_check_ms: int
    slowdown_max: float
    policy: Path | None
    experiments: Path | None
    served_log: Path | None
    log_features: float
    shadow_model: str | None
    shadow_share: float
    host: str
    grpc_port: int
    metrics_port: int
    threads: int
    intra_op_threads: int
    drain_ms: int
    grace_ms: int
    limits: Limits
    connections: Connections
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("grpc_port", 0, 65_535),
            ("metrics_port", 0, 65_535),
            ("threads", 1, 1_024),
            ("intra_op_threads", 1, 256),
            ("drain_ms", 0, 3_600_000),
            ("grace_ms", 0, 3_600_000),
            ("log_features", 0, 1),
            ("shadow_share", 0, 1),
            ("model_check_ms", 10, 3_600_000),
            ("slowdown_max", 1, 1_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} {getattr(self, name)} is not between {low} and {high}")
        if self.grpc_port == self.metrics_port != 0:
            raise ConfigError(f"grpc_port and metrics_port are both {self.grpc_port}")
        if (self.bundle is None) == (self.model_repository is None):
            raise ConfigError("bundle and model_repository exclude each other")
        if self.log_features and self.served_log is None:
            raise ConfigError(f"log_features {self.log_features} has no served_log to go to")
        if self.shadow_model is not None and self.model_repository is None:
            raise ConfigError(
                f"shadow_model {self.shadow_model!r} needs a model_repository: a bundle has no other model"
            )
        # A call that comes without a deadline in the last moment before the stop must have the time promised to it.
        if self.grace_ms < self.limits.default_deadline_ms:
            raise ConfigError(
                f"grace_ms {self.grace_ms} is shorter than default_deadline_ms {self.limits.default_deadline_ms}"
            )
        # A connection would be leaving for longer than it is of use.
        if self.connections.connection_age_ms < self.grace_ms:
            raise ConfigError(
                f"connection_age_ms {self.connections.connection_age_ms} is shorter than grace_ms {self.grace_ms}"
            )


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str


_LIMIT_HELP = {
    "rows_max": "candidate Tweets in a request",
    "authors_max": "authors in a request",
    "columns_max": "columns in a table, a vector counted by its width",
    "vocabulary_max": "categories in a categorical column",
    "string_bytes_max": "bytes of any string in a request",
    "message_bytes_max": "bytes of a request",
    "streams_max": "calls at a time on one connection",
    "default_deadline_ms": "milliseconds for a call that comes without a deadline",
}
_CONNECTIONS_HELP = {
    "connections_max": "connections at a time",
    "connection_age_ms": "milliseconds after which a connection is told to go away, a tenth more or less",
    "keepalive_ms": "milliseconds of silence after which a connection is pinged, and after as many more closed",
    "ping_interval_min_ms": "milliseconds between pings of a client; those that ping more often are sent away",
    "header_bytes_max": "bytes of a call's headers",
}


def _flags() -> tuple[_Flag, ...]:
    available = cpus()
    return (
        _Flag("bundle", Path, None, "directory of the model to serve; the embedded one unless there is a repository"),
        _Flag("model_repository", Path, None, "directory of models to serve by label, and to look at for new ones"),
        _Flag("model_check_ms", int, 1_000, "milliseconds between looks"),
        _Flag("slowdown_max", float, 3.0, "times as long as the serving model that a new one may take"),
        _Flag("policy", Path, None, "TOML file with the timeline policy"),
        _Flag("experiments", Path, None, "TOML file with the experiments"),
        _Flag("served_log", Path, None, "directory to write what is served to"),
        _Flag("log_features", float, 0.0, "share of the requests to write there as received, 0 to 1"),
        _Flag("shadow_model", str, None, "label of a model to compare with those that serve, off the request path"),
        _Flag("shadow_share", float, 0.01, "share of the timelines to compare it on, 0 to 1"),
        _Flag("host", str, "0.0.0.0", "address to listen on"),  # noqa: S104 - a server in a container must
        _Flag("grpc_port", int, 8001, "0: any free one"),
        _Flag("metrics_port", int, 8002, "0: any free one"),
        _Flag("threads", int, 8 * available + 24, "calls worked on or waiting at a time; further ones are refused"),
        _Flag("intra_op_threads", int, available, "threads that one run of the model may use"),
        _Flag("drain_ms", int, 5_000, "milliseconds between 'not serving' and the stop"),
        _Flag("grace_ms", int, 10_000, "milliseconds for calls under way to end"),
        _Flag("tls_cert", Path, None, "PEM file of the server's certificate; with it the gRPC port speaks TLS only"),
        _Flag("tls_key", Path, None, "PEM file of its private key"),
        _Flag("tls_client_ca", Path, None, "PEM file; clients must show a certificate that leads to one in it"),
        _Flag("tls_allow", str, None, "names, with commas between; callers must have one in their certificate"),
        *(_Flag(f.name, int, f.default, _LIMIT_HELP[f.name]) for f in fields(Limits)),
        *(_Flag(name, int, default, _CONNECTIONS_HELP[name]) for name, default in asdict(Connections()).items()),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    for flag in _flags():
        default = f"default {flag.default}" if flag.default not in (None, "") else "default: none"
        parser.add_argument("--" + flag.name.replace("_", "-"), metavar=_metavar(flag), help=f"{flag.help} ({default})")


_METAVARS: Mapping[Callable[[str], Any], str] = {Path: "PATH", int: "N", float: "NUMBER"}


def _metavar(flag: _Flag) -> str:
    if flag.name.endswith("_ms"):
        return "MS"
    return _METAVARS.get(flag.parse, "TEXT")


def from_arguments(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Config:
    """The settings that flags and environment come to; raises ConfigError naming the bad one and its value."""
    values: dict[str, Any] = {}
    # These two exclude each other: one that is a flag wins over the other one in the environment.
    for name, other in (("bundle", "model_repository"), ("model_repository", "bundle")):
        if getattr(arguments, name) is not None:
            environment = {k: v for k, v in environment.items() if k != ENVIRONMENT_PREFIX + other.upper()}
    for flag in _flags():
        name, text = "--" + flag.name.replace("_", "-"), getattr(arguments, flag.name)
        if text is None:
            name = ENVIRONMENT_PREFIX + flag.name.upper()
            text = environment.get(name)
        try:
            values[flag.name] = flag.default if text is None else flag.parse(text)
        except ValueError as error:
            raise ConfigError(f"{name} is {text!r}, not a number") from error
    if values["bundle"] is None and values["model_repository"] is None:
        values["bundle"] = DEFAULT_BUNDLE
    limits, connections = ({f.name: values.pop(f.name) for f in fields(kind)} for kind in (Limits, Connections))
    tls = {name: values.pop(f"tls_{name}") for name in ("cert", "key", "client_ca", "allow")}
    try:
        return Config(**values, limits=Limits(**limits), connections=Connections(**connections), tls=_tls(**tls))
    except ConfigError:
        raise
    except ValueError as error:  # from Limits, Connections or Tls
        raise ConfigError(str(error)) from error


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None, allow: str | None) -> Tls | None:
    if cert is None and key is None and client_ca is None and allow is None:
        return None
    if cert is None or key is None:
        raise ConfigError("tls_cert and tls_key go together, and the other settings of TLS need both")
    names = frozenset() if allow is None else frozenset(name.strip() for name in allow.split(","))
    return Tls(cert, key, client_ca, names)
