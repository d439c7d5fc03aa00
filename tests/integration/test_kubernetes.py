from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import trustme
import yaml

import service
from service import config
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.server import LEFT_ALONE_WITHIN_S
from tests.server_process import started

BASE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "base"
TLS = BASE.parent / "overlays" / "tls"


def manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((BASE / name).read_text())
    return document


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("name", ["deployment.yaml", "service.yaml"])
def test_manifests_are_what_kubernetes_takes(name: str, version: str) -> None:
    """Against its own schemas, unknown keys refused."""
    kubernetes_validate.validate(manifest(name), version, strict=True)


def test_a_misspelt_key_would_be_seen() -> None:
    """The check above is not blind to it."""
    document = copy.deepcopy(manifest("deployment.yaml"))
    container(document)["imagee"] = "x"

    with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_service_finds_the_pods() -> None:
    """By their labels and by the names of their ports."""
    deployment, headless = manifest("deployment.yaml"), manifest("service.yaml")
    ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}

    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert {port["targetPort"]: port["port"] for port in headless["spec"]["ports"]} == ports


def test_manifests_agree_with_the_servers_own_defaults() -> None:
    """Ports, and a termination that outlasts the drain, the sending away of callers, and the calls under way."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    defaults = config.from_arguments(parser.parse_args([]), {})
    deployment = manifest("deployment.yaml")
    ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}

    assert ports == {"grpc": defaults.grpc_port, "metrics": defaults.metrics_port}
    termination_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert 1_000 * termination_s > defaults.drain_ms + 1_000 * LEFT_ALONE_WITHIN_S + defaults.grace_ms


def test_probes_ask_the_grpc_port_for_what_the_server_reports() -> None:
    """Readiness asks for the ranking service by the name it has in the API."""
    deployment = container(manifest("deployment.yaml"))
    (grpc_port,) = (port["containerPort"] for port in deployment["ports"] if port["name"] == "grpc")

    probes = {name: deployment[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}

    assert {probe["port"] for probe in probes.values()} == {grpc_port}
    assert probes["readiness"]["service"] == pb.DESCRIPTOR.services_by_name["TimelineRankingService"].full_name


def test_the_probes_of_the_tls_overlay_reach_a_server_of_its_settings(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Secret as cert-manager makes it; and they fail where there is no server."""
    patched = container(yaml.safe_load((TLS / "deployment.yaml").read_text()))
    authority = trustme.CA()
    pair = authority.issue_cert("timeline-ranker.default.svc", "127.0.0.1")
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "tls.crt").write_bytes(pair.cert_chain_pems[0].bytes())
    (tmp_path / "tls.key").write_bytes(pair.private_key_pem.bytes())
    for variable in patched["env"]:
        monkeypatch.setenv(variable["name"], variable["value"].replace("/tls/", f"{tmp_path}/"))

    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert patched[name]["grpc"] is None
        program, *arguments = patched[name]["exec"]["command"]
        assert program == "timeline-ranker"
        with started(toy_bundle) as server:
            here = [
                argument.replace("=/tls/", f"={tmp_path}/").replace("127.0.0.1:8001", server.addresses.grpc)
                for argument in arguments
            ]
            assert subprocess.run([sys.executable, "-m", "service", *here], timeout=60).returncode == 0
        assert subprocess.run([sys.executable, "-m", "service", *here], timeout=60).returncode == 1


@pytest.mark.foreign
@pytest.mark.parametrize("directory", [BASE, TLS], ids=["base", "tls"])
def test_kustomize_renders_the_version_of_this_package(directory: Path) -> None:
    """Both resources, with the image pinned to the package's own version."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")

    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, timeout=60, check=True)

    rendered = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert set(rendered) == {"Deployment", "Service"}
    assert container(rendered["Deployment"])["image"] == f"timeline-ranker:{service.__version__}"
    for document in rendered.values():
        kubernetes_validate.validate(document, "1.37", strict=True)
