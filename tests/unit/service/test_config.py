"""Settings: flag, then environment, then default; a bad one is named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from service import config
from service.config import Config, ConfigError
from service.limits import Limits


def read(*flags: str, **environment: str) -> Config:
    parser = argparse.ArgumentParser(exit_on_error=False)
    config.add_arguments(parser)
    return config.from_arguments(parser.parse_args(flags), environment)


def test_defaults() -> None:
    """What nobody says: the embedded model, ports 8001 and 8002, the limits as documented."""
    settings = read()

    assert settings.bundle == config.DEFAULT_BUNDLE
    assert (settings.grpc_port, settings.metrics_port) == (8001, 8002)
    assert settings.limits == Limits(5_000, 5_000, 2_048, 10_000, 256, 32 << 20, 1_000, 1_000)


def test_a_repository_takes_the_place_of_a_bundle() -> None:
    """Whoever names a repository does not get the embedded model."""
    settings = read("--model-repository", "models")

    assert (settings.bundle, settings.model_repository) == (None, Path("models"))


def test_flag_beats_environment_beats_default() -> None:
    """Every setting has both forms."""
    environment = {"TIMELINE_RANKER_GRPC_PORT": "7", "TIMELINE_RANKER_BUNDLE": "/models/a"}

    assert read(**environment).grpc_port == 7
    assert read(**environment).bundle == Path("/models/a")
    assert read("--grpc-port", "8", **environment).grpc_port == 8
    assert read("--rows-max", "10").limits.rows_max == 10


def test_a_flag_wins_over_what_excludes_it_in_the_environment() -> None:
    """Whoever starts an image that has a bundle set may serve a repository instead, and the other way round."""
    both = {"TIMELINE_RANKER_BUNDLE": "b", "TIMELINE_RANKER_MODEL_REPOSITORY": "r"}
    assert read("--model-repository", "own", TIMELINE_RANKER_BUNDLE="b").bundle is None
    assert read("--bundle", "own", TIMELINE_RANKER_MODEL_REPOSITORY="r").model_repository is None
    assert read("--bundle", "own", **both).bundle == Path("own")
    for flags in ((), ("--bundle", "own", "--model-repository", "own")):
        with pytest.raises(ConfigError, match="exclude each other"):
            read(*flags, **both)


def test_other_variables_are_none_of_ours() -> None:
    """Kubernetes sets TIMELINE_RANKER_PORT and its like for a Service of that name."""
    assert read(TIMELINE_RANKER_PORT="tcp://10.0.0.1:8001", TIMELINE_RANKER_SERVICE_HOST="10.0.0.1") == read()


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("--grpc-port", "x"), {}, "--grpc-port is 'x', not a number"),
        ((), {"TIMELINE_RANKER_DRAIN_MS": "5s"}, "TIMELINE_RANKER_DRAIN_MS is '5s', not a number"),
        (("--metrics-port", "65536"), {}, "metrics_port 65536 is not between 0 and 65535"),
        (("--threads", "0"), {}, "threads 0 is not between 1 and 1024"),
        (("--intra-op-threads", "0"), {}, "intra_op_threads 0 is not between 1 and 256"),
        (("--drain-ms", "-1"), {}, "drain_ms -1 is not between 0 and 3600000"),
        (("--rows-max", "0"), {}, "rows_max 0 is not between 1 and 2147483647"),
        (("--streams-max", "2147483648"), {}, "streams_max 2147483648 is not between 1 and 2147483647"),
        (("--grpc-port", "9", "--metrics-port", "9"), {}, "grpc_port and metrics_port are both 9"),
        (("--log-features", "1.5", "--served-log", "x"), {}, "log_features 1.5 is not between 0 and 1"),
        (("--log-features", "nan", "--served-log", "x"), {}, "log_features nan is not between 0 and 1"),
        (("--shadow-share", "-0.1"), {}, "shadow_share -0.1 is not between 0 and 1"),
        (("--shadow-model", "canary"), {}, "shadow_model 'canary' needs a model_repository: a bundle has no other"),
        (("--log-features", "0.5"), {}, "log_features 0.5 has no served_log to go to"),
        (("--bundle", "a", "--model-repository", "b"), {}, "bundle and model_repository exclude each other"),
        (("--model-check-ms", "9"), {}, "model_check_ms 9 is not between 10 and 3600000"),
        (("--tls-cert", "c"), {}, "tls_cert and tls_key go together"),
        (("--tls-client-ca", "c"), {}, "tls_cert and tls_key go together"),
        ((), {"TIMELINE_RANKER_TLS_ALLOW": "a"}, "tls_cert and tls_key go together"),
        (("--tls-cert", "c", "--tls-key", "k", "--tls-allow", "a"), {}, "tls_allow needs tls_client_ca"),
        (
            ("--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a", "--tls-allow", "a,,b"),
            {},
            "tls_allow has an empty name",
        ),
        (
            ("--connection-age-ms", "5000", "--keepalive-ms", "2000"),
            {},
            "connection_age_ms 5000 is shorter than grace_ms 10000",
        ),
        (("--connection-age-ms", "20000"), {}, "connection_age_ms 20000 is shorter than twice keepalive_ms 60000"),
        (
            ("--keepalive-ms", "6000", "--connection-age-ms", "11999"),
            {},
            "connection_age_ms 11999 is shorter than twice",
        ),
        (("--message-bytes-max", "104999"), {}, "message_bytes_max 104999 is too small for rows_max 5000"),
        (("--header-bytes-max", "0"), {}, "header_bytes_max 0 is not between 1 and 2147483647"),
        (("--slowdown-max", "0.5"), {}, "slowdown_max 0.5 is not between 1 and 1000"),
        (("--grace-ms", "10"), {}, "grace_ms 10 is shorter than default_deadline_ms 1000"),
        (("--message-bytes-max", "1000"), {}, "message_bytes_max 1000 is too small for rows_max 5000: ids and times"),
    ],
)
def test_refused(flags: tuple[str, ...], environment: dict[str, str], message: str) -> None:
    """The message names the setting and its value, and the relation where two do not fit."""
    with pytest.raises(ConfigError) as caught:
        read(*flags, **environment)

    assert str(caught.value).startswith(message)


def test_just_enough() -> None:
    """Where a relation is met to the last unit."""
    assert read("--keepalive-ms", "6000", "--connection-age-ms", "12000").connections.keepalive_ms == 6_000
    assert read("--message-bytes-max", "105000").limits.message_bytes_max == 105_000
    assert read("--grace-ms", "1000").grace_ms == 1_000


def test_two_free_ports_are_no_conflict() -> None:
    """0 and 0 come to two different ports."""
    assert read("--grpc-port", "0", "--metrics-port", "0").grpc_port == 0


def test_every_limit_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """The help tells each flag with its default."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert "--vocabulary-max N categories in a categorical column (default 10000)" in text
    assert "--message-bytes-max N bytes of a request (default 33554432)" in text
