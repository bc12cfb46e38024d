"""SGLang arguments that cannot stand in `engine.extraArgs`, and what to do instead.

Either Assay sets them itself, from the spec or from what it needs to watch an engine, or they
would change what the engine is (another way to load weights, another protocol, a part of a larger
engine), which Assay could not see. All spellings that SGLang 0.5.23 knows are listed;
tests/engine holds the list against SGLang's own parser.

SGLang's parser also takes any beginning of a name that fits one option only, such as `--trust`.
So an argument is refused when it *begins* a name of this table; `reserved_argument` says so for
one argument, and no other option of SGLang's is a beginning of one of these.
"""

from __future__ import annotations

_SOURCE = "use spec.model.source"
_TENSOR = "use spec.engine.parallelism.tensor"
_DATA = "use spec.engine.parallelism.data"
_EXPERT = "use spec.engine.parallelism.expert"
_ACCELERATOR = "use spec.engine.accelerator"
_ADDRESS = "Assay sets the address that probes, router and operator use"
_KEY = "router and operator would not know the key; put authentication in front of the Service"
_DETERMINISTIC = "use spec.engine.deterministic"
_SAFETENSORS = "Assay loads safetensors only, so that weights cannot carry code"
_ONE_POD = "an engine is one pod; its GPUs follow from spec.engine.parallelism"
_PLAIN_HTTP = "engines speak plain HTTP inside the cluster; put TLS in front of the router"
_ONE_SERVER = "further processes that serve HTTP would not load the plugin that checks requests"
_ROLE = "every engine serves whole requests"

RESERVED_ARGUMENTS: dict[str, str] = {
    "--model-path": _SOURCE,
    "--model": _SOURCE,
    "--revision": _SOURCE,
    "--served-model-name": "use spec.model.servedName",
    "--trust-remote-code": "use spec.model.trustRemoteCode",
    "--weight-version": "Assay sets it to the version of the checkpoint that is served",
    "--load-format": _SAFETENSORS,
    "--custom-weight-loader": _SAFETENSORS,
    "--tp-size": _TENSOR,
    "--tensor-parallel-size": _TENSOR,
    "--dp-size": _DATA,
    "--data-parallel-size": _DATA,
    "--attn-dp-size": _DATA,
    "--attention-data-parallel-size": _DATA,
    "--enable-dp-attention": _DATA,
    "--ep-size": _EXPERT,
    "--ep": _EXPERT,
    "--expert-parallel-size": _EXPERT,
    "--pp-size": _ONE_POD,
    "--pipeline-parallel-size": _ONE_POD,
    "--nnodes": _ONE_POD,
    "--node-rank": _ONE_POD,
    "--dist-init-addr": _ONE_POD,
    "--nccl-init-addr": _ONE_POD,
    "--device": _ACCELERATOR,
    "--base-gpu-id": _ACCELERATOR,
    "--gpu-id-step": _ACCELERATOR,
    "--host": _ADDRESS,
    "--port": _ADDRESS,
    "--fastapi-root-path": _ADDRESS,
    "--grpc-mode": _PLAIN_HTTP,
    "--smg-grpc-mode": _PLAIN_HTTP,
    "--enable-http2": _PLAIN_HTTP,
    "--ssl-keyfile": _PLAIN_HTTP,
    "--ssl-certfile": _PLAIN_HTTP,
    "--ssl-ca-certs": _PLAIN_HTTP,
    "--ssl-keyfile-password": _PLAIN_HTTP,
    "--tokenizer-worker-num": _ONE_SERVER,
    "--api-key": _KEY,
    "--admin-api-key": _KEY,
    "--enable-metrics": "Assay sets it: it reads every engine's metrics",
    "--enable-deterministic-inference": _DETERMINISTIC,
    "--rl-on-policy-target": _DETERMINISTIC,
    "--disaggregation-mode": _ROLE,
    "--encoder-only": _ROLE,
    "--language-only": _ROLE,
    "--config": "write the arguments into spec.engine.extraArgs",
    "--help": "see SGLang's documentation",
    "-h": "see SGLang's documentation",
}


def reserved_argument(argument: str) -> str | None:
    """The reserved flag that SGLang could take `argument` for, or None if it may be used."""
    flag = argument.partition("=")[0]
    if not flag.startswith("-") or not flag.strip("-"):
        return None
    return next((name for name in RESERVED_ARGUMENTS if name.startswith(flag)), None)
