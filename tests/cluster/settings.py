"""Versions and places. Every version that the test cluster is made of is named here or in
`images/kind-node/go.mod`, which a unit test holds against these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "v1.37.2"
KIND_VERSION = "v0.33.0"
HELM_VERSION = "v4.3.1"
# The one of kind's own node image of this version.
CONTAINERD_VERSION = "v2.3.4"
# Only where it is asked for: `python -m tests.cluster keda`.
KEDA_VERSION = "v2.21.0"
# The node image that kind of this version takes where an image registry answers.
KIND_NODE_IMAGE = "kindest/node:v1.37.0"

DEBIAN_SUITE = "bookworm"
# What images are built from. It exists on every machine once the step "base image" is done:
# pulled where an image registry answers, made from Debian packages elsewhere.
BASE_IMAGE = f"assay/debian:{DEBIAN_SUITE}"
BASE_IMAGE_UPSTREAM = f"debian:{DEBIAN_SUITE}-slim"

DEFAULT_CLUSTER = "assay"
# Where the cache's share folder appears in every node.
SHARE_MOUNT = "/opt/assay"

REPOSITORY = Path(__file__).resolve().parents[2]
NODE_SOURCES = REPOSITORY / "images" / "kind-node"


def cache_root(environment: Mapping[str, str]) -> Path:
    """`$ASSAY_CACHE`, else `$XDG_CACHE_HOME/assay`, else `~/.cache/assay`."""
    if chosen := environment.get("ASSAY_CACHE"):
        return Path(chosen).expanduser().resolve()
    if xdg := environment.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().resolve() / "assay"
    return Path.home() / ".cache" / "assay"


@dataclass(frozen=True)
class Cache:
    """The folders outside the checkout that hold everything built and everything running."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        return cls(cache_root(os.environ))

    @property
    def programs(self) -> Path:
        """Go programs, as NAME-KEY."""
        return self.root / "programs"

    @property
    def images(self) -> Path:
        """Root file systems and saved images, as NAME-KEY.tar."""
        return self.root / "images"

    @property
    def share(self) -> Path:
        """Mounted into every node at SHARE_MOUNT: big things that need no image."""
        return self.root / "share"

    @property
    def engine(self) -> Path:
        """Process id and log of the Docker engine, where we started it."""
        return self.root / "engine"

    @property
    def logs(self) -> Path:
        """One log a step, of the last run."""
        return self.root / "logs"

    @property
    def scratch(self) -> Path:
        """Unfinished things; emptied at the start of every run."""
        return self.root / "scratch"

    def cluster(self, name: str) -> Path:
        """kubeconfig, tools and record of one cluster."""
        return self.root / "clusters" / name

    def create(self) -> None:
        for folder in (self.programs, self.images, self.share, self.engine, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
