"""One drawn dataset and one judge for the whole room."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_world import BENCH, QUICK, build_dataset

from aid.evaluate.judge_run import judge
from aid.evaluate.settings import JudgeInputs


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("world") / "dataset", train=36, held=18)


@pytest.fixture(scope="session")
def arbiter(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arbiter") / "judge"
    return judge(QUICK, JudgeInputs(dataset=dataset), out, BENCH)
