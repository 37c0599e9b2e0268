"""From published rows to a trained judge: the imported folder is what `rprm train` takes, unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rprm.data.published import open_published, write_published
from rprm.models import R_PRM_SYSTEM
from rprm.prompts import load_template
from rprm.training.dpo import train_dpo
from rprm.training.sft import train_sft
from tests.data.published_set import stand_in
from tests.training.test_dpo import QUICK as QUICK_DPO
from tests.training.test_sft import QUICK as QUICK_SFT
from tests.training.test_sft import figures


@pytest.mark.slow
def test_sft_then_dpo_on_an_imported_set(tiny_model: Path, tmp_path: Path) -> None:
    """The model of the first goes into the second without --prompt; 80 and 82 of 85 and 84 rows are trained on."""
    source = stand_in(tmp_path / "set")
    for kind in ("sft", "dpo"):
        write_published(open_published(f"{source}?data_dir={kind}"), tmp_path / kind)
    first = train_sft(
        tmp_path / "sft", model=str(tiny_model), output=tmp_path / "run-sft", settings=replace(QUICK_SFT, max_steps=2)
    )
    assert first.summary["rows"]["train"]["num_rows"] == 80
    assert first.summary["rows"]["validation"]["num_rows"] == 12
    assert [row["step"] for row in figures(first.output) if "loss" in row] == [1, 2]
    assert load_template(first.model).system == R_PRM_SYSTEM
    second = train_dpo(
        tmp_path / "dpo", model=str(first.model), output=tmp_path / "run-dpo", settings=replace(QUICK_DPO, max_steps=2)
    )
    assert second.summary["rows"]["train"]["num_rows"] == 82
    assert second.num_steps == 2
