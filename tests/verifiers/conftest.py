"""What the tests of verifiers share: one bench, whose worker processes start once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from assay_verifiers.registry import Bench

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs every asynchronous test in this folder on one event loop.

    Worker processes belong to the loop that they were started on.
    """
    on_one_loop = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if item.path.is_relative_to(HERE) and pytest_asyncio.is_async_test(item):
            item.add_marker(on_one_loop, append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bench() -> AsyncIterator[Bench]:
    """A bench with two worker processes, for all tests."""
    async with Bench(2) as bench:
        yield bench
