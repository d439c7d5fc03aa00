"""A plan as a Kubeflow PyTorchJob: the same plan on a cluster as at home."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")

PLAN_FILE = "plan.toml"
_PLAN_FOLDER, _DATA_FOLDER = "/plan", "/data"
# Of a pod's name Kubernetes takes 63 characters, and the operator adds the replica's.
_STEM_LENGTH_MAX = 32


@dataclass(frozen=True)
class ClusterPlan:
    """Where `submit` has a plan carried out; it has no part in what the model is.

    Attributes:
        image: Has the trainer installed: `pip install '.[train]'`.
        volume_claim: A PersistentVolumeClaim that all pods can write. It is $TIMELINE_RANKER_DATA and the directory
            that the plan's relative paths start from; artifacts are kept in `runs/<name of the plan>`.
        workers: Pods that train together.
        processes: In each pod.
        cpu: Cores of each pod, as a Kubernetes quantity.
        memory: Of each pod, likewise.
    """

    image: str
    volume_claim: str
    workers: int = 1
    processes: int = 1
    cpu: str = "2"
    memory: str = "8Gi"

    def __post_init__(self) -> None:
        if not self.image or self.image.split() != [self.image]:
            raise ValueError(f"image: {self.image!r} is no image")
        if not _NAME.fullmatch(self.volume_claim):
            raise ValueError(f"volume_claim: {self.volume_claim!r} is no name of a claim")
        if min(self.workers, self.processes) < 1:
            raise ValueError("workers and processes must be at least 1")
        for name, quantity in (("cpu", self.cpu), ("memory", self.memory)):
            if not _QUANTITY.fullmatch(quantity):
                raise ValueError(f"{name}: {quantity!r} is no quantity, such as '4' or '16Gi'")


def manifests(plan_name: str, plan_toml: str, cluster: ClusterPlan) -> list[dict[str, Any]]:
    """The objects to create, in order: a ConfigMap with the plan, and the kubeflow.org/v1 PyTorchJob that runs it.

    Args:
        plan_name: Its file's, without the ending. What Kubernetes does not take in names is replaced.
        plan_toml: The whole plan. Its hash is in the objects' name, so another plan is another job.
        cluster: Where it runs.
    """
    run = re.sub("[^a-z0-9]+", "-", plan_name.lower())[:_STEM_LENGTH_MAX].strip("-")
    name = f"train-{run}-{hashlib.sha256(plan_toml.encode()).hexdigest()[:8]}"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {PLAN_FILE: plan_toml},
    }
    pods = {"Master": 1, "Worker": cluster.workers - 1}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running", "backoffLimit": 3},
            "pytorchReplicaSpecs": {
                # Training goes on from its last checkpoint, so a pod that failed is worth another try.
                role: {"replicas": count, "restartPolicy": "OnFailure", "template": _pod(name, run, cluster)}
                for role, count in pods.items()
                if count
            },
        },
    }
    return [config, job]


def _pod(name: str, run: str, cluster: ClusterPlan) -> dict[str, Any]:
    resources = {"cpu": cluster.cpu, "memory": cluster.memory}
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": cluster.image,
        "command": _command(run, cluster),
        "workingDir": _DATA_FOLDER,
        "env": [{"name": "TIMELINE_RANKER_DATA", "value": _DATA_FOLDER}],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [
            {"name": "plan", "mountPath": _PLAN_FOLDER, "readOnly": True},
            {"name": "data", "mountPath": _DATA_FOLDER},
        ],
    }
    volumes = [
        {"name": "plan", "configMap": {"name": name}},
        {"name": "data", "persistentVolumeClaim": {"claimName": cluster.volume_claim}},
    ]
    return {"spec": {"containers": [container], "volumes": volumes}}


def _command(run: str, cluster: ClusterPlan) -> list[str]:
    # Kubernetes fills in $(NAME) from what the operator adds to each pod's environment.
    return [
        "torchrun",
        f"--nnodes={cluster.workers}",
        f"--nproc_per_node={cluster.processes}",
        "--node_rank=$(RANK)",
        "--master_addr=$(MASTER_ADDR)",
        "--master_port=$(MASTER_PORT)",
        *("-m", "model_export", "run", f"{_PLAN_FOLDER}/{PLAN_FILE}", "--out", f"{_DATA_FOLDER}/runs/{run}"),
    ]
