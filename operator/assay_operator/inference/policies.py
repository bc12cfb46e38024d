"""Who may reach pods of ours, and whom they may reach: the parts of NetworkPolicies, as plain data.

An engine has no key: whoever reaches its port may give it other weights. So that is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assay_operator.config import NetworkPolicies
from assay_operator.inference.observation import ENGINE_PORT
from assay_operator.plan import Json

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"
DNS: Json = {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]}
"""Lets names be looked up. Where that were refused, a program that looks up the name of an address
that it is called from would wait half a minute for nothing."""


def policy(
    metadata: Json,
    labels: Mapping[str, str],
    *,
    ingress: Sequence[Json] = (),
    egress: Sequence[Json] | None = None,
) -> Json:
    """A NetworkPolicy.

    Args:
        metadata: its own.
        labels: of the pods that it is about.
        ingress: how they may be reached; in no other way.
        egress: what they may reach, and nothing else; None: anything.
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": dict(labels)},
            "policyTypes": ["Ingress"] if egress is None else ["Ingress", "Egress"],
            **({"ingress": list(ingress)} if ingress else {}),
            **({} if egress is None else {"egress": list(egress)}),
        },
    }


def pods(labels: Mapping[str, str]) -> Json:
    """The pods of the same namespace that have these labels, as a peer."""
    return {"podSelector": {"matchLabels": dict(labels)}}


def tcp(port: int) -> list[Json]:
    """One port."""
    return [{"port": port, "protocol": "TCP"}]


def to_engines(labels: Mapping[str, str]) -> Json:
    """Lets the engines that have these labels be asked."""
    return {"to": [pods(labels)], "ports": tcp(ENGINE_PORT)}


def operator_pods(access: NetworkPolicies) -> Json:
    """The operator's pods, as a peer."""
    return {
        "namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: access.operator.namespace}},
        **pods(access.operator.podLabels),
    }
