"""What docs/training.md and docs/algorithms.md show is what happens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from assay_trainer.algorithms.advantage import ADVANTAGES
from assay_trainer.algorithms.kl import ESTIMATORS
from assay_trainer.algorithms.loss import LOSSES
from assay_trainer.algorithms.settings import CLIP
from assay_trainer.cli import FAILED, STOPPED, WRONG, main
from assay_trainer.status import Phase, State, as_json
from assay_trainer.watch import Kind
from tests.trainer.fields import table
from tests.trainer.jobs import write_model

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "rl-job.json"
PAGE = (REPOSITORY / "docs" / "training.md").read_text()
ALGORITHMS_PAGE = (REPOSITORY / "docs" / "algorithms.md").read_text()


def test_the_pages_example_is_the_one_under_examples() -> None:
    assert f"```json\n{EXAMPLE.read_text()}```" in PAGE


def test_the_example_is_checked_without_a_warning_and_the_page_shows_what_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = shutil.copy(EXAMPLE, tmp_path / "job.json")
    write_model(tmp_path / "solver-base")
    assert main(["check", str(job)]) == 0
    said = capsys.readouterr()
    assert not said.err and "warning" not in said.out
    assert f"```\n{said.out.replace(str(tmp_path), '/jobs')}```" in PAGE


def test_the_page_lists_every_field_with_its_default() -> None:
    """`python -m tests.trainer.fields` prints the table."""
    assert table() in PAGE


@pytest.mark.parametrize("name", [*ADVANTAGES, *LOSSES, *ESTIMATORS, "tis", "icepop", "none"])
def test_the_page_explains_every_algorithm(name: str) -> None:
    assert re.search(rf"^\| `{re.escape(name)}` \|", ALGORITHMS_PAGE, re.MULTILINE)


def test_the_page_tells_each_losss_own_bounds() -> None:
    assert CLIP.keys() == LOSSES.keys()
    for name, (low, high) in CLIP.items():
        (line,) = (
            line for line in ALGORITHMS_PAGE.splitlines() if line.startswith(f"| `{name}` | ")
        )
        assert re.search(r"\| (\[[^]|]+\]) \|", line), line
        (shown,) = re.findall(r"\| (\[[0-9][^]|]*\]) \|", line)
        assert json.loads(shown) == [low, high]


def test_the_page_has_a_row_for_every_alarm() -> None:
    for kind in get_args(Kind):
        assert re.search(rf"^\| `{kind}` \|", PAGE, re.MULTILINE), kind


def test_the_page_names_all_that_status_tells() -> None:
    told = as_json(State("run", 1, began=0.0, progressed=0.0), 1.0)
    for name in (*told, *get_args(Phase)):
        assert f"`{name}`" in PAGE, name


def test_the_page_has_a_row_for_every_exit_code() -> None:
    for code in (0, FAILED, WRONG, STOPPED):
        assert re.search(rf"^\| {code} \|", PAGE, re.MULTILINE), code
