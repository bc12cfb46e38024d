"""The node image where no image registry answers: Debian packages, kind's own files and the
programs of `images/kind-node/`. See the Dockerfiles there; this puts together what they need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.cluster.engine import image_exists, registry_answers
from tests.cluster.errors import ClusterError
from tests.cluster.files import content_key, link
from tests.cluster.gobuild import COMPONENT_PROGRAMS, KUBE, NODE_PROGRAMS, GoBuilder, Program
from tests.cluster.processes import capture
from tests.cluster.settings import (
    BASE_IMAGE,
    BASE_IMAGE_UPSTREAM,
    DEBIAN_SUITE,
    KIND_VERSION,
    KUBERNETES_VERSION,
    NODE_SOURCES,
    Cache,
)
from tests.cluster.steps import StepRun

# In the base image, so that kube-proxy and the pod network can be built from it with no network.
BASE_PACKAGES = ("ca-certificates", "conntrack", "iptables")
# Documentation and translations would be a third of the image.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# Which image of ours stands for the ones that kubeadm names, told by the last part of the name.
# The images that the manifests name are stable names within the node.
COMPONENTS = ("kube", "coredns", "pause", "storage")
MANIFEST_IMAGES = {
    "docker.io/assay/podnet:node": "kube",
    "docker.io/assay/local-path-provisioner:node": "storage",
}

# The builder that needs no plugin is there with every Docker.
LEGACY_BUILDER = {"DOCKER_BUILDKIT": "0"}


def component_of(image: str) -> str:
    """The component image that stands for one that kubeadm asks for."""
    name = image.rsplit("/", 1)[-1].split(":", 1)[0]
    if name in ("coredns", "pause"):
        return name
    if name == "etcd" or name.startswith("kube-"):
        return "kube"
    raise ClusterError(f"kubeadm asks for {image}, which images/kind-node does not build")


def pause_image(images: Iterable[str]) -> str:
    return next(image for image in images if component_of(image) == "pause")


@dataclass(frozen=True)
class NodeImage:
    """Builds the base image and, from it, the node image; both are kept by content."""

    cache: Cache
    builder: GoBuilder

    @cached_property
    def base_key(self) -> str:
        return content_key(DEBIAN_SUITE, *BASE_PACKAGES, "left out", *LEFT_OUT)

    @cached_property
    def key(self) -> str:
        programs = (self.builder.path(program).name for program in NODE_PROGRAMS)
        sources = ("Dockerfile", "Dockerfile.components", "manifests")
        return content_key(
            self.base_key, KIND_VERSION, *programs, *(NODE_SOURCES / name for name in sources)
        )

    @property
    def reference(self) -> str:
        return f"assay/kind-node:{KUBERNETES_VERSION}-{self.key}"

    @property
    def base_archive(self) -> Path:
        return self.cache.images / f"debian-{self.base_key}.tar"

    @property
    def archive(self) -> Path:
        return self.cache.images / f"kind-node-{self.key}.tar"

    @property
    def _base_reference(self) -> str:
        return f"{BASE_IMAGE}-{self.base_key}"

    @property
    def _packages_reference(self) -> str:
        return f"assay/kind-packages:{self.key}"

    def make_base_archive(self, run: StepRun) -> None:
        """A minimal Debian, made from packages by mmdebstrap (a third of debootstrap's time)."""
        if self.base_archive.exists() or image_exists(self._base_reference):
            run.reuse()
            return
        # One that was killed leaves its folder here, where the next run removes it.
        aside = self.cache.scratch / self.base_archive.name
        environment = {"TMPDIR": str(self.cache.scratch)}
        run.command(
            # In a mount namespace of its own, so that nothing stays mounted if it is killed.
            "unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase",
            f"--include={','.join(BASE_PACKAGES)}",
            "--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
            DEBIAN_SUITE, aside, *_package_sources(),
            env=environment, on_line=lambda line: run.note(line.removeprefix("I: ")[:60]),
        )  # fmt: skip
        aside.replace(self.base_archive)

    def import_base(self, run: StepRun) -> None:
        if image_exists(self._base_reference):
            run.reuse()
        else:
            run.command("docker", "import", self.base_archive, self._base_reference)
        run.command("docker", "tag", self._base_reference, BASE_IMAGE)

    def build_packages(self, run: StepRun) -> None:
        """The node's Debian packages: a layer that later builds of the node image begin with."""
        if self.exists():
            run.reuse()
            return
        context = self._context("packages", ())
        shutil.copy2(NODE_SOURCES / "Dockerfile", context)
        self._build(run, context, "packages", self._packages_reference)

    def build_components(self, run: StepRun) -> None:
        """The images of the system pods, saved as one archive for the node image."""
        if self.exists():
            run.reuse()
            return
        context = self._context("components", COMPONENT_PROGRAMS)
        shutil.copy2(NODE_SOURCES / "Dockerfile.components", context / "Dockerfile")
        local = {name: f"assay/node-{name}:{self.key}" for name in COMPONENTS}
        for name, reference in local.items():
            run.note(name)
            self._build(run, context, name, reference)
        names = {image: local[component_of(image)] for image in self._kubeadm_images()}
        names |= {image: local[name] for image, name in MANIFEST_IMAGES.items()}
        for image, reference in names.items():
            run.command("docker", "tag", reference, image)
        run.note("saving")
        run.command("docker", "save", "-o", self._images_archive, *names)
        # The names were needed only inside the archive.
        run.command("docker", "rmi", *names)

    def build_node(self, run: StepRun) -> None:
        if image_exists(self.reference):
            run.reuse()
            return
        if self.archive.exists():
            run.note("loading the saved one")
            run.command("docker", "load", "-i", self.archive)
            return
        context = self._context("node", NODE_PROGRAMS)
        shutil.copy2(NODE_SOURCES / "Dockerfile", context)
        shutil.copytree(NODE_SOURCES / "manifests", context / "manifests")
        link(self._images_archive, context / "images.tar")
        # What kind's own base image is made of lies in its module. The copies are writable,
        # unlike the files there, so that they can be removed.
        files = self.builder.module_folder("sigs.k8s.io/kind") / "images" / "base" / "files"
        shutil.copytree(files, context / "kind-base", copy_function=shutil.copyfile)
        for folder, _, _ in os.walk(context / "kind-base"):
            Path(folder).chmod(0o755)
        run.note("importing images")
        self._build(run, context, "images", f"assay/node-images:{self.key}")
        run.note("putting it together")
        self._build(
            run, context, "node", self.reference,
            f"PAUSE_IMAGE={pause_image(self._kubeadm_images())}",
            f"KUBERNETES_VERSION={KUBERNETES_VERSION}",
        )  # fmt: skip
        self._drop_intermediate(run)

    def save(self, run: StepRun) -> None:
        """Keep the image in the cache too: the engine's own store may not outlive the machine."""
        if self.archive.exists():
            run.reuse()
            return
        aside = self.cache.scratch / self.archive.name
        run.command("docker", "save", "-o", aside, self.reference)
        aside.replace(self.archive)

    @property
    def _images_archive(self) -> Path:
        return self.cache.scratch / f"components-{self.key}.tar"

    def exists(self) -> bool:
        return self.archive.exists() or image_exists(self.reference)

    def _context(self, name: str, programs: Iterable[Program]) -> Path:
        context = self.cache.scratch / f"context-{name}"
        context.mkdir(parents=True)
        for program in programs:
            link(self.builder.path(program), context / program.name)
        return context

    def _build(
        self, run: StepRun, context: Path, target: str, reference: str, *arguments: str
    ) -> None:
        every = (f"BASE={self._base_reference}", *arguments)
        options = (word for argument in every for word in ("--build-arg", argument))
        run.command(
            "docker", "build", "--target", target, "--tag", reference, *options, context,
            env=LEGACY_BUILDER,
        )  # fmt: skip

    def _drop_intermediate(self, run: StepRun) -> None:
        """Untag what was needed only on the way; layers that are in use stay."""
        for name in ("images", *COMPONENTS):
            capture("docker", "rmi", f"assay/node-{name}:{self.key}", check=False)
        run.log("intermediate images removed")

    def _kubeadm_images(self) -> list[str]:
        listed = capture(
            self._kubeadm(), "config", "images", "list", "--kubernetes-version", KUBERNETES_VERSION
        )
        return listed.stdout.split()

    def _kubeadm(self) -> Path:
        program = self.cache.scratch / "kubeadm"
        if not program.exists():
            link(self.builder.path(KUBE), program)
        return program


def pull_base(run: StepRun) -> None:
    """The base image where a registry answers, by the same name as elsewhere."""
    if image_exists(BASE_IMAGE):
        run.reuse()
        return
    run.command("docker", "pull", BASE_IMAGE_UPSTREAM)
    run.command("docker", "tag", BASE_IMAGE_UPSTREAM, BASE_IMAGE)


def usual_image_can_be_had(reference: str) -> bool:
    """Whether kind's usual node image is here or can be pulled."""
    return image_exists(reference) or registry_answers(reference)


def _package_sources() -> list[str]:
    """The machine's own package sources (a mirror, a proxy), where they are for our suite."""
    for name in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        path = Path(name)
        if path.exists() and DEBIAN_SUITE in path.read_text():
            return [str(path)]
    return []
