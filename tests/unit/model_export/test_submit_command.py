"""`submit`: a plan as a job for a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import torch.distributed.run
import yaml

import model_export
from model_export import run_command
from model_export.__main__ import main
from model_export.plan import load_plan

PLANS = Path(model_export.__file__).parent / "plans"
CLUSTER = '[cluster]\nimage = "registry.example/trainer:1"\nvolume_claim = "training"\n'


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


# The fields of spec and their types in Kubeflow's CRD pytorchjobs.kubeflow.org, v1. A replica's template is a pod
# template of Kubernetes itself, and checked as one.
_INTEGER, _STRING = {"type": "integer"}, {"type": "string"}
JOB = _object(
    {
        "apiVersion": {"const": "kubeflow.org/v1"},
        "kind": {"const": "PyTorchJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": _object(
            {
                "elasticPolicy": {"type": "object"},
                "nprocPerNode": _STRING,
                "pytorchReplicaSpecs": {
                    "type": "object",
                    "propertyNames": {"enum": ["Master", "Worker"]},
                    "additionalProperties": _object(
                        {
                            "replicas": _INTEGER,
                            "restartPolicy": {"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
                            "template": {"type": "object"},
                        }
                    ),
                },
                "runPolicy": _object(
                    {
                        "activeDeadlineSeconds": _INTEGER,
                        "backoffLimit": _INTEGER,
                        "cleanPodPolicy": {"enum": ["All", "Running", "None"]},
                        "managedBy": _STRING,
                        "schedulingPolicy": {"type": "object"},
                        "suspend": {"type": "boolean"},
                        "ttlSecondsAfterFinished": _INTEGER,
                    }
                ),
            },
            "pytorchReplicaSpecs",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)


def _write(folder: Path, cluster: str, base: str = "kuairand.toml", name: str = "My plan_2.toml") -> Path:
    (folder / name).write_text(f'extends = "{PLANS / base}"\n{cluster}')
    return folder / name


def _submitted(plan: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ConfigMap, PyTorchJob)."""
    assert main(["submit", str(plan), "--dry-run"]) == 0
    config, job = yaml.safe_load_all(capsys.readouterr().out)
    return config, job


@pytest.mark.parametrize("workers", [1, 3])
def test_objects_are_what_the_cluster_takes(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the schemas of Kubernetes and of the operator, unknown keys refused; one of the workers is the master."""
    config, job = _submitted(_write(tmp_path, f"{CLUSTER}workers = {workers}"), capsys)

    jsonschema.validate(job, JOB)
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert {role: replica["replicas"] for role, replica in replicas.items()} == (
        {"Master": 1} if workers == 1 else {"Master": 1, "Worker": 2}
    )
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(config, version, strict=True)
        for replica in replicas.values():
            pods = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "x"},
                "template": replica["template"],
            }
            kubernetes_validate.validate(pods, version, strict=True)
    assert job["metadata"]["name"] == config["metadata"]["name"]


def test_pods_run_the_plan_with_torchrun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By torchrun's own parser and the trainer's: the plan that is mounted, into the claim, on all processes."""
    cluster = f"{CLUSTER}workers = 3\nprocesses = 2\ncpu = '4'\nmemory = '16Gi'"
    config, job = _submitted(_write(tmp_path, cluster), capsys)
    pods = [replica["template"]["spec"] for replica in job["spec"]["pytorchReplicaSpecs"].values()]
    assert pods[0] == pods[1]
    (container,) = pods[0]["containers"]
    program, *arguments = container["command"]
    added = {"RANK": "2", "MASTER_ADDR": "master", "MASTER_PORT": "23456"}  # by the operator
    for name, value in added.items():
        arguments = [argument.replace(f"$({name})", value) for argument in arguments]

    parsed = torch.distributed.run.get_args_parser().parse_args(arguments)

    assert program == "torchrun"
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank) == ("3", "2", 2)
    assert (parsed.master_addr, parsed.master_port) == ("master", 23456)
    assert (parsed.module, parsed.training_script) == (True, "model_export")
    command, *rest = parsed.training_script_args
    assert command == "run"
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    run = parser.parse_args(rest)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods[0]["volumes"]}
    assert volumes["plan"]["configMap"]["name"] == config["metadata"]["name"]
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "training"
    assert run.plan.relative_to(mounts["plan"]).name in config["data"]
    assert str(run.out.relative_to(mounts["data"])) == "runs/my-plan-2"
    assert container["env"] == [{"name": "TIMELINE_RANKER_DATA", "value": mounts["data"]}]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}


@pytest.mark.parametrize("base", sorted(path.name for path in PLANS.glob("*.toml")))
def test_the_plan_on_the_cluster_is_the_plan_at_home(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all that it extends, in one file; the cluster has no part in what the model is."""
    config, _ = _submitted(_write(tmp_path, CLUSTER, base), capsys)
    (tmp_path / "there.toml").write_text(config["data"]["plan.toml"])

    assert load_plan(tmp_path / "there.toml") == load_plan(tmp_path / "My plan_2.toml")
    assert load_plan(tmp_path / "there.toml").to_json() == load_plan(PLANS / base).to_json()


def test_another_plan_is_another_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same plan is the same one, whenever it is rendered; any name of a file makes a name for Kubernetes."""
    names = [
        _submitted(_write(tmp_path, CLUSTER + more, name=file), capsys)[1]["metadata"]["name"]
        for file, more in (("a.toml", ""), ("a.toml", ""), ("a.toml", "[sample]\nseed = 1"), ("Ä" * 60 + ".toml", ""))
    ]

    assert names[0] == names[1] != names[2]
    assert all(len(name) < 50 and name.isascii() and name == name.lower() for name in names)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("", "has no table [cluster]"),
        ("[cluster]\nimage = 'x'", "cluster: volume_claim is missing"),
        (CLUSTER + "worker = 2", "'worker' is not known; did you mean 'workers'?"),
        (CLUSTER + "workers = 0", "workers and processes must be at least 1"),
        (CLUSTER + "memory = '8 gigabytes'", "memory: '8 gigabytes' is no quantity"),
        (CLUSTER.replace("registry.example/trainer:1", "two words"), "'two words' is no image"),
        (CLUSTER.replace("training", "Training_claim"), "'Training_claim' is no name of a claim"),
    ],
)
def test_what_a_cluster_would_refuse_is_refused_here(
    cluster: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed but the reason."""
    assert main(["submit", str(_write(tmp_path, cluster)), "--dry-run"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_nothing_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --dry-run the command says how to send it."""
    assert main(["submit", str(_write(tmp_path, CLUSTER))]) == 2
    assert "--dry-run | kubectl apply -f -" in capsys.readouterr().err
