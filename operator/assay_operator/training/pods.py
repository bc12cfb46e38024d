"""The pod templates of a VerifiedRLJob: its rollout engines and its trainers."""

from __future__ import annotations

from assay_operator.api.engine import Parallelism
from assay_operator.api.inference_service import InferenceServiceSpec, Model
from assay_operator.api.training import Evaluation
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.merge import strategic_merge
from assay_operator.inference.objects import (
    CONTAINER_SECURITY,
    MODEL_MOUNT,
    POD_SECURITY,
    USER_ID,
    engine_template,
    parse_source,
    placement,
    pod_template,
    resources,
)
from assay_operator.inference.profiles import EngineProfile, resolve
from assay_operator.plan import Json
from assay_operator.training.checkpoints import claim_of
from assay_operator.training.jobfile import (
    CHECKPOINTS_MOUNT,
    DATA_MOUNT,
    JOB_FILE,
    STATUS_PORT,
    SUITE_FILE,
    data_key,
    suite_key,
)
from assay_operator.training.names import JobIdentity
from assay_operator.training.observation import GENERATION_LABEL

JOB_KEY = "job.json"
PINS_MOUNT = "/etc/assay/pins"
"""A folder in the trainer's container whose file names are the digests that it must not delete; the
environment variable ASSAY_PINS names it."""
GRACE_SECONDS = 120
"""From SIGTERM to SIGKILL: the step that is learned is finished and a checkpoint written."""
MASTER_PORT = 29500


def trainer_profile(spec: VerifiedRLJobSpec) -> EngineProfile:
    """Where trainer pods run and what they get: as an engine with as many GPUs, without a family.

    Raises:
        UnsupportedProfile: no node of the accelerator holds so many GPUs.
    """
    trainer = spec.trainer
    return resolve(
        "auto", trainer.accelerator, "throughput", Parallelism(tensor=trainer.gpusPerNode)
    )


def job_engine_template(
    identity: JobIdentity, spec: VerifiedRLJobSpec, profile: EngineProfile, config: OperatorConfig
) -> Json:
    """The pod template of the job's engines: that of a service, which also sees what the trainer
    writes, by the same path."""
    service = InferenceServiceSpec(
        model=Model(source=spec.model.source, servedName=identity.name),
        engine=spec.rollout.engine,
        replicas=spec.rollout.engines,
        template=spec.rollout.template,
    )
    source = parse_source(spec.model.source)
    layout = {
        MODEL_MOUNT: source.key,
        CHECKPOINTS_MOUNT: f"pvc/{claim_of(identity.name, spec)}",
    }
    return engine_template(
        identity, service, profile, config, version=source.version, layout=layout
    )


def trainer_template(
    identity: JobIdentity,
    spec: VerifiedRLJobSpec,
    profile: EngineProfile,
    config: OperatorConfig,
    generation: int,
) -> Json:
    """The trainer's pod template: ours, then the administrator's overrides, then the user's."""
    accelerator_class = spec.trainer.accelerator.partition("-")[0]
    volumes = _Volumes(
        [
            _files("job", identity.job, {JOB_KEY: JOB_FILE}),
            {"name": "pins", "configMap": {"name": identity.pins}},
            {"name": "cache", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shm}},
        ]
    )
    mounts = [
        _mount("job", JOB_FILE.rpartition("/")[0], read_only=True),
        _mount("pins", PINS_MOUNT, read_only=True),
        _mount("cache", "/cache"),
        _mount("tmp", "/tmp"),
        _mount("shm", "/dev/shm"),
        volumes.claim(_model_claim(spec), MODEL_MOUNT, read_only=True),
        volumes.claim(claim_of(identity.name, spec), CHECKPOINTS_MOUNT),
        *_data(spec, volumes),
        *_suite(spec.evaluation, volumes),
    ]
    container = {
        "name": "trainer",
        "image": config.trainer.images[accelerator_class],
        "imagePullPolicy": config.imagePullPolicy,
        "command": command(identity, spec, generation),
        "env": [
            {"name": "XDG_CACHE_HOME", "value": "/cache"},
            {"name": "TRITON_CACHE_DIR", "value": "/cache/triton"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "ASSAY_PINS", "value": PINS_MOUNT},
            {"name": "ASSAY_TERMINATION_LOG", "value": "/dev/termination-log"},
            # torchrun would kill its processes 30 s after SIGTERM, in the middle of a checkpoint.
            {"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(GRACE_SECONDS - 10)},
        ],
        "ports": [{"name": "status", "containerPort": STATUS_PORT, "protocol": "TCP"}],
        "resources": resources(spec.trainer.resources, profile),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    pod: Json = {
        "restartPolicy": "Never",
        "subdomain": identity.trainer,
        "containers": [container],
        "volumes": volumes.all,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        # As PID 1 a process without a handler never gets its SIGTERM: see the engine's.
        "shareProcessNamespace": True,
        # The claim is made for this user where its driver can do that.
        "securityContext": {
            **POD_SECURITY,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        **placement(profile),
    }
    template = pod_template(identity, "trainer", pod, {})
    labels = {**template["metadata"]["labels"], GENERATION_LABEL: str(generation)}
    template["metadata"]["labels"] = labels
    template = strategic_merge(template, config.trainer.templates.get(accelerator_class, {}))
    return strategic_merge(template, spec.trainer.template or {})


def command(identity: JobIdentity, spec: VerifiedRLJobSpec, generation: int) -> list[str]:
    """What a trainer's container runs: one process, or one for each GPU of all nodes."""
    nodes, processes = spec.trainer.nodes, spec.trainer.gpusPerNode
    if nodes * processes == 1:
        return ["assay-train", "run", JOB_FILE]
    first = f"{identity.gang(generation)}-0.{identity.trainer}"
    where = (
        ["--standalone"]
        if nodes == 1
        else [
            # The Job's controller sets it, and the kubelet puts it in.
            "--node-rank=$(JOB_COMPLETION_INDEX)",
            f"--master-addr={first}",
            f"--master-port={MASTER_PORT}",
        ]
    )
    return [
        "torchrun",
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        *where,
        *("-m", "assay_trainer", "run", JOB_FILE),
    ]


class _Volumes:
    """A pod's volumes. One claim is one volume, however often it is mounted: a kubelet may wait for
    ever for the second."""

    def __init__(self, volumes: list[Json]) -> None:
        self.all = list(volumes)

    def claim(self, name: str, path: str, *, read_only: bool = False) -> Json:
        """The mount of a claim."""
        for volume in self.all:
            if (volume.get("persistentVolumeClaim") or {}).get("claimName") == name:
                return _mount(volume["name"], path, read_only=read_only)
        called = f"claim-{len(self.all)}"
        self.all.append({"name": called, "persistentVolumeClaim": {"claimName": name}})
        return _mount(called, path, read_only=read_only)

    def files(self, name: str, config_map: str, files: dict[str, str]) -> Json:
        """The mount of some keys of a ConfigMap as files, all in one folder."""
        self.all.append(_files(name, config_map, files))
        folder = next(iter(files.values())).rpartition("/")[0]
        return _mount(name, folder, read_only=True)


def _files(name: str, config_map: str, files: dict[str, str]) -> Json:
    items = [{"key": key, "path": path.rpartition("/")[2]} for key, path in files.items()]
    return {"name": name, "configMap": {"name": config_map, "items": items}}


def _mount(name: str, path: str, *, read_only: bool = False) -> Json:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _model_claim(spec: VerifiedRLJobSpec) -> str:
    volume = parse_source(spec.model.source).volume
    name: str = volume["persistentVolumeClaim"]["claimName"]
    return name


def _data(spec: VerifiedRLJobSpec, volumes: _Volumes) -> list[Json]:
    if spec.data.claim is not None:
        return [volumes.claim(spec.data.claim, DATA_MOUNT, read_only=True)]
    if spec.data.configMap is not None:
        key = data_key(spec.data)
        return [volumes.files("data", spec.data.configMap, {key: f"{DATA_MOUNT}/{key}"})]
    return []


def _suite(evaluation: Evaluation | None, volumes: _Volumes) -> list[Json]:
    if evaluation is None or evaluation.suite.configMap is None:
        return []
    key = suite_key(evaluation)
    return [volumes.files("suite", evaluation.suite.configMap, {key: SUITE_FILE})]
