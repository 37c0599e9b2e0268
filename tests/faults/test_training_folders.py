"""Folders of trainings and rounds, damaged: the weights of an undisturbed run, or an error in one line."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rprm.prompts import PromptTemplate
from tests.faults.folder_damages import CHANGES, PLACES, damage
from tests.faults.test_kills import TRAININGS, inputs, split, trained, warm
from tests.faults.warm import Fault, Warm

__all__ = ["inputs", "warm"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forks")

#: Damages to a training folder of each state; some change nothing.
NUM_DAMAGES = 10


@pytest.mark.slow
def test_damaged_folders_of_trainings(
    warm: Warm, inputs: dict[str, Path], tiny_model: Path, tmp_path: Path, figures: Callable[..., None]
) -> None:
    found = inputs | {"tiny": tmp_path / "tiny"}
    shutil.copytree(tiny_model, found["tiny"])
    template = PromptTemplate(name="short", user="{{problem}}\n{{steps}}\nCheck step {{step_number}}.")
    (found["tiny"] / "rprm_prompt.toml").write_text(template.to_toml())
    (tmp_path / "tmp").mkdir()
    train = [*split(TRAININGS["classifier"], found), "-o", "o"]
    for _ in range(2):  # The first imports what is needed.
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        whole = warm(tmp_path, *train)
        assert whole.code == 0, whole.err
    wanted = trained(tmp_path / "o")
    (tmp_path / "o").rename(tmp_path / "whole")
    killed = warm(tmp_path, *train, fault=Fault(kill_at=whole.num_touches * 3 // 4))
    assert killed.code == -signal.SIGKILL
    (tmp_path / "o").rename(tmp_path / "half")
    assert [*(tmp_path / "half" / "checkpoints").iterdir()]
    draw, counts = random.Random(0), Counter[str]()
    for state in ("half", "whole"):
        files = sorted(path for path in (tmp_path / state).rglob("*") if path.is_file())
        for number in range(NUM_DAMAGES):
            file = str(draw.choice(files).relative_to(tmp_path / state))
            change = draw.choice([*CHANGES, *PLACES])
            case = f"{state}, {file}, {change} (random {number})"
            shutil.rmtree(tmp_path / "o", ignore_errors=True)
            shutil.copytree(tmp_path / state, tmp_path / "o")
            if not damage(tmp_path / "o", file, change, random.Random(number), tmp_path / "none"):
                continue
            ended = warm(tmp_path, *train, fault=Fault(kill_after_s=60.0))
            assert "Traceback" not in ended.err, f"{case}: {ended.err}"
            if ended.code == 0:
                # A finished run is not trained again, and its rows of metrics and its model are the user's to change.
                assert state == "whole" or trained(tmp_path / "o") == wanted, case
                counts["the_same_weights"] += 1
            else:
                *_, said = ended.err.splitlines()
                assert (ended.code, said[:8], len(said) < 1500) == (1, "rprm: o/", True), f"{case}: {ended}"
                counts["errors_in_one_line"] += 1
    figures(**counts)
    assert min(counts.values()) > 3
