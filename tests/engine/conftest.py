"""The engine environment: real SGLang for a CPU, built by images/engine/cpu/build_env.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILD_ENV = ROOT / "images/engine/cpu/build_env.py"
MAKE_MODEL = ROOT / "examples/tiny-model/make_model.py"
REMEDY = (
    f"Build it with `python {BUILD_ENV.relative_to(ROOT)} DEST --progress` (a few minutes, 4.8 GB) "
    "and set ASSAY_ENGINE_ENV=DEST."
)


@dataclass(frozen=True)
class EngineEnv:
    """The folder of packages and the interpreter that they are for."""

    folder: Path
    python: str

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a container with the CPU image; nothing of the caller's but PATH."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder),
            "SGLANG_USE_CPU_ENGINE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            **more,
        }

    def run(
        self, arguments: Sequence[str | Path], stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python in the engine environment."""
        return subprocess.run(
            [self.python, *map(str, arguments)],
            input=stdin,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def _build_env() -> Any:
    spec = importlib.util.spec_from_file_location("assay_build_env", BUILD_ENV)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def engine_env() -> EngineEnv:
    """The engine environment; without it these tests fail, since they would test nothing."""
    named = os.environ.get("ASSAY_ENGINE_ENV")
    if not named:
        pytest.fail(f"These tests need the engine environment. {REMEDY}", pytrace=False)
    build_env = _build_env()
    if not build_env.is_complete(Path(named)):
        pytest.fail(
            f"ASSAY_ENGINE_ENV={named} is no complete engine environment with key "
            f"{build_env.content_key()}. {REMEDY}",
            pytrace=False,
        )
    python = build_env.matching_python()
    if python is None:
        pytest.fail(f"These tests need Python {build_env.PYTHON} (Debian: python3).", pytrace=False)
    return EngineEnv(Path(named), python)


@pytest.fixture(scope="session")
def model(engine_env: EngineEnv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small model that can add."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    made = engine_env.run([MAKE_MODEL, "--out", out, "--seed", "7"])
    assert made.returncode == 0, made.stderr
    return out
