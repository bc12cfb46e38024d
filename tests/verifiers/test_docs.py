"""What docs/verifiers.md shows is what happens: its examples are run, its package is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from assay_verifiers.cli import main
from assay_verifiers.suites import load_suite

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "verifiers.md").read_text()
OWN = PAGE.index("## A verifier of one's own")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def verdicts(path: Path) -> str:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return "".join(f"{v['id']} {v['status']} {v['score']:g}\n" for v in found)


def test_every_example_gets_the_verdict_that_the_page_promises(tmp_path: Path) -> None:
    types = PAGE[:OWN]
    examples, promised = blocks("jsonl", types), blocks("text", types)
    assert len(examples) == len(promised) >= 8
    file, out = tmp_path / "in", tmp_path / "out"
    file.write_text("".join(examples))
    assert main(["run", str(file), "--out", str(out)]) == 0
    assert verdicts(out) == "".join(promised)


@pytest.mark.parametrize("code", blocks("python", PAGE[:OWN]))
def test_the_pages_python_runs(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_pages_suite_is_a_suite(tmp_path: Path) -> None:
    (example,) = blocks("json", PAGE)
    (tmp_path / "suite").write_text(example)
    assert load_suite(tmp_path / "suite").splits() == {"heldout": 2}


def test_the_pages_package_works_once_it_is_installed(tmp_path: Path) -> None:
    """Installed as pip does it: a module and its metadata in a folder of sys.path."""
    own = PAGE[OWN:]
    (project,), (module,), (example,), (promised,) = (
        blocks(language, own) for language in ("toml", "python", "jsonl", "text")
    )
    site = tmp_path / "site"
    metadata = site / "assay_palindrome-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "assay_palindrome.py").write_text(module)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: assay-palindrome\nVersion: 1.0\n"
    )
    points = project.partition('[project.entry-points."assay.verifiers"]\n')[2]
    (metadata / "entry_points.txt").write_text("[assay.verifiers]\n" + points.replace('"', ""))
    (tmp_path / "in").write_text(example)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "assay_verifiers", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("run", "in", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert verdicts(tmp_path / "out") == promised
    wrong = json.loads(example.splitlines()[0])
    wrong["verifier"]["longest"] = 1
    (tmp_path / "in").write_text(json.dumps(wrong) + "\n")
    refused = command("run", "in", "--out", "out2")
    assert refused.returncode == 2 and "line 1: verifier.longest" in refused.stderr


def test_without_the_package_its_type_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text(blocks("jsonl", PAGE[OWN:])[0])
    assert main(["run", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "unknown verifier type 'palindrome'" in capsys.readouterr().err
