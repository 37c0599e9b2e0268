"""Published rows become training rows: every text as it was, every row that does not fit named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rprm.data.published import open_published, write_published
from rprm.errors import InputError, PromptError, SettingsChanged
from rprm.models import R_PRM_SYSTEM
from rprm.prompts import load_template
from rprm.runs import read_manifest
from rprm.training.rows import check_rows, open_data
from tests.data.published_set import (
    BAD_DPO,
    BAD_SFT,
    ODD_DPO,
    analysis,
    dpo_row,
    instruction,
    sft_row,
    stand_in,
    write_set,
)
from tests.warm import warm_torch


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sft_rows(tmp_path: Path) -> None:
    source = stand_in(tmp_path / "set")
    summary = write_published(open_published(f"{source}?data_dir=sft"), tmp_path / "out")
    assert summary["parts"]["train"] == {"rows": 80, "yes": 40, "no": 40, "problems": 80}
    assert summary["parts"]["validation"] == {"rows": 12, "yes": 6, "no": 6, "problems": 12}
    assert summary["counts"] == {"rows of train": 85, "rows of validation": 12, "kept": 92}
    assert summary["dropped"] == dict.fromkeys(BAD_SFT, 1)
    assert summary["rejected"] == 5
    rows = read(tmp_path / "out" / "train.jsonl")
    for number, row in enumerate(rows):
        system, user = row["prompt"]
        assert system == {"role": "system", "content": R_PRM_SYSTEM}
        assert user == {"role": "user", "content": instruction(number)}
        assert row["completion"] == [{"role": "assistant", "content": sft_row(number)["output"]}]
        assert row["label"] is (number % 2 == 0)
    # 1-based places in the part; five rows stand between number 39 and number 40.
    assert [rows[place]["id"] for place in (0, 39, 40)] == ["train-1", "train-40", "train-46"]

    rejected = read(tmp_path / "out" / "rejected.jsonl")
    assert [row["line"] for row in rejected] == [41, 42, 43, 44, 45]
    assert {row["file"] for row in rejected} == {f"{source}?data_dir=sft&split=train"}
    for row, (reason, published) in zip(rejected, BAD_SFT.items(), strict=True):
        assert row["reason"].startswith(reason)
        assert json.loads(row["text"]) == published
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Made by `rprm data import`" in card
    assert "| output: 2 verdicts | 1 |" in card
    assert "No problem stands in both parts." in card
    assert "Rejected input rows (`rejected.jsonl`): 5." in card
    check_rows(open_data(tmp_path / "out"), "sft")


def test_dpo_rows(tmp_path: Path) -> None:
    """A rejected analysis may have no verdict, or text after it; the label is the chosen one's verdict."""
    source = stand_in(tmp_path / "set")
    summary = write_published(open_published(f"{source}/dpo"), tmp_path / "out")
    assert summary["counts"] == {"rows of train": 84, "rows of validation": 12, "kept": 94}
    assert summary["dropped"] == dict.fromkeys(BAD_DPO, 1)
    rows = {row["id"]: row for row in read(tmp_path / "out" / "train.jsonl")}
    assert len(rows) == 82
    for place, published in ((1, dpo_row(0)), (2, dpo_row(1)), (43, ODD_DPO[0]), (44, ODD_DPO[1])):
        row = rows[f"train-{place}"]
        assert row["prompt"][-1]["content"] == published["instruction"]
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (
            published["chosen"],
            published["rejected"],
        )
        assert row["label"] is published["chosen"].endswith("Yes")
    check_rows(open_data(tmp_path / "out"), "dpo")


def test_both_kinds_have_one_template(tmp_path: Path) -> None:
    """What was trained on one kind can be trained on the other without --prompt."""
    source = stand_in(tmp_path / "set")
    for kind in ("sft", "dpo"):
        write_published(open_published(f"{source}?data_dir={kind}"), tmp_path / kind)
    sft, dpo = (load_template(tmp_path / kind) for kind in ("sft", "dpo"))
    assert sft.digest == dpo.digest


def test_killed_and_run_again(tmp_path: Path) -> None:
    """Half a file is left behind; the second run ends with the bytes of an undisturbed one."""
    source = stand_in(tmp_path / "set")
    name = f"{source}?data_dir=sft"
    write_published(open_published(name), tmp_path / "whole")
    killed = tmp_path / "killed"
    script = (
        "import os, sys\nfrom rprm.data.datasets import Dataset\nfrom rprm.data.published import *\n"
        "write, num = Dataset.write, 0\n"
        "def stop(*args, **kwargs):\n    global num\n    num += 1\n    write(*args, **kwargs)\n"
        "    if num == 30: os._exit(9)\n"
        "Dataset.write = stop\nwrite_published(open_published(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, name, str(killed)], capture_output=True, timeout=120)
    assert done.returncode == 9, done.stderr
    assert not (killed / "train.jsonl").exists()
    write_published(open_published(name), killed)
    for file in ("train.jsonl", "validation.jsonl", "rejected.jsonl", "rprm_prompt.toml", "summary.json", "sample.md"):
        wanted = (tmp_path / "whole" / file).read_bytes()
        assert (killed / file).read_bytes() == wanted.replace(b"# A sample of whole", b"# A sample of killed")
    # Other content under the same name is another source.
    write_set(source, {"sft/test": [sft_row(500), sft_row(501)]})
    with pytest.raises(SettingsChanged, match="input"):
        write_published(open_published(name), killed)


def test_a_set_of_both_kinds_needs_its_data_dir(tmp_path: Path) -> None:
    source = stand_in(tmp_path / "set")
    with pytest.raises(InputError, match=r"data_dir=sft or .*data_dir=dpo"):
        open_published(str(source))
    with pytest.raises(InputError, match="has no folder 'grpo'"):
        open_published(f"{source}?data_dir=grpo")
    with pytest.raises(InputError, match="unknown option 'split'"):
        open_published(f"{source}?data_dir=sft&split=train")


def test_from_the_hub_at_one_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's calls are replaced: the revision is made up, and the library reads the stand-in's files."""
    import datasets
    import huggingface_hub

    source = stand_in(tmp_path / "set")
    asked: list[Any] = []

    class Info:
        sha = "5cc7683d"

    class Api:
        def dataset_info(self, name: str, revision: str | None = None) -> Info:
            asked.append((name, revision))
            return Info()

        def list_repo_files(self, name: str, *, repo_type: str, revision: str) -> list[str]:
            assert (name, repo_type, revision) == ("kevinpro/R-PRM", "dataset", "5cc7683d")
            return [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]

    build = datasets.load_dataset_builder

    def load(path: str, config: str | None, *, data_dir: str, revision: str) -> Any:
        assert (path, config, revision) == ("kevinpro/R-PRM", None, "5cc7683d")
        return build(str(source / data_dir))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(InputError, match=r"name one, kevinpro/R-PRM\?data_dir=sft or"):
        open_published("kevinpro/R-PRM")
    write_published(open_published("kevinpro/R-PRM?data_dir=sft&revision=main"), tmp_path / "out")
    assert asked == [("kevinpro/R-PRM", None), ("kevinpro/R-PRM", "main")]
    manifest = read_manifest(tmp_path / "out")
    assert manifest["settings"]["input"] == "revision:5cc7683d"
    named = "hub:kevinpro/R-PRM?data_dir=sft&revision=5cc7683d"
    assert manifest["sessions"][0]["input"] == named
    assert read(tmp_path / "out" / "rejected.jsonl")[0]["file"] == f"{named}&split=train"
    assert load_template(tmp_path / "out").name == "R-PRM"
    assert len(read(tmp_path / "out" / "validation.jsonl")) == 12


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_file_is_all_training_rows(tmp_path: Path, ending: str) -> None:
    rows = [sft_row(number) for number in range(70)]
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n" + '{"instruction": "\\ud800"}\n')
    summary = write_published(open_published(str(path)), tmp_path / "out")
    assert summary["parts"]["train"]["rows"] == 70
    assert not (tmp_path / "out" / "validation.jsonl").exists()
    if ending == "jsonl":
        assert summary["dropped"] == {"instruction is no Unicode": 1, "it cannot be read": 1}
        assert [row["line"] for row in read(tmp_path / "out" / "rejected.jsonl")] == [71, 72]


def test_a_wrong_first_row_costs_itself(tmp_path: Path) -> None:
    """Torn, of other columns, no object, of the other kind: the kind of most rows is that of the file."""
    wrong = ["{torn", '{"question": "1"}', "3", json.dumps(dpo_row(0))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{row}\n" for row in [*wrong, *(json.dumps(sft_row(number)) for number in range(60))]))
    summary = write_published(open_published(str(path)), tmp_path / "out")
    assert summary["counts"] == {"rows of train": 64, "kept": 60}
    assert [row["line"] for row in read(tmp_path / "out" / "rejected.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        (["{torn", "{"], "row 1: not JSON|part train: cannot be read: JSON parse error"),
        (['{"instruction": null}'] * 3, r"row 1 has the columns instruction \(no text\); rows for sft have"),
        (
            [json.dumps({**sft_row(number), "output": None}) for number in range(3)],
            r"row 1 has the columns instruction, output \(no text\); rows",
        ),
        # 12 of 72 rows are 17%.
        (
            [*(json.dumps(dpo_row(number)) for number in range(12)), *(json.dumps(sft_row(n)) for n in range(60))],
            r"holds rows of two kinds \(60 for sft, 12 for dpo among the first 72\)",
        ),
    ],
)
def test_a_file_without_rows_of_one_kind_is_refused_with_the_cause(
    rows: list[str], message: str, folder: bool, tmp_path: Path
) -> None:
    path = tmp_path / "set" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(f"{row}\n" for row in rows))
    with pytest.raises(InputError, match=message):
        write_published(open_published(str(path.parent if folder else path)), tmp_path / "out")


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_files_of_different_columns_are_refused_before_anything_is_written(
    ending: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_set(tmp_path / "set", {"train": [sft_row(number) for number in range(60)]})
    if ending == "parquet":
        write_set(tmp_path / "other", {"train": [dpo_row(number) for number in range(4)]})
        (tmp_path / "other" / "train" / "part-1.parquet").rename(source / "train" / "part-2.parquet")
    else:
        shutil.rmtree(source / "train")
        (source / "train").mkdir()
        for name, row in (("a", sft_row), ("b", dpo_row)):
            rows = (json.dumps(row(number)) for number in range(30))
            (source / "train" / f"{name}.jsonl").write_text("\n".join(rows))
    capfd.readouterr()
    with pytest.raises(
        InputError, match=r"part train: its files have different columns \(instruction, output; "
    ) as told:
        write_published(open_published(str(source)), tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr().err == ""


def test_rows_with_analyses_of_both_kinds_are_pairs(tmp_path: Path) -> None:
    rows = [{**sft_row(number), **dpo_row(number)} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = write_published(open_published(str(tmp_path / "rows.jsonl")), tmp_path / "out")
    assert summary["counts"]["kept"] == 60
    written = read(tmp_path / "out" / "train.jsonl")
    assert [row["chosen"][0]["content"] for row in written] == [row["chosen"] for row in rows]
    assert "completion" not in written[0]


def test_a_template_that_is_named_must_make_every_instruction(tmp_path: Path) -> None:
    source = stand_in(tmp_path / "set")
    write_published(open_published(f"{source}/sft"), tmp_path / "sft")
    own = load_template(tmp_path / "sft")
    summary = write_published(open_published(f"{source}/dpo"), tmp_path / "dpo", template=own)
    assert summary["counts"]["kept"] == 94
    assert load_template(tmp_path / "dpo").digest == own.digest
    with pytest.raises(InputError, match=r"no row is left .*the template does not make the instruction: 96"):
        write_published(open_published(f"{source}/dpo"), tmp_path / "none", template=load_template("critique"))


def test_hostile_content_stays_as_it_is(tmp_path: Path) -> None:
    """Texts with braces, line ends, quotes of the template's own words and 100,000 characters come through."""
    from tests.data.published_set import WORDING

    hostile = [
        "{{problem}} {x} \\frac{1}{2}\r\n",
        "Step 1: see Step 2: and\n\nLine to check:\nStep 9: no",
        "数学 ∑ <|im_end|> 🙂",
        "x" * 100_000,
        "ends in a space ",
    ]
    rows = [sft_row(number) for number in range(60)]
    for number, text in enumerate(hostile):
        prompt = WORDING.render(f"Problem {number}: {text}", [text, f"So: {text}"], 1)
        rows.append({"instruction": prompt.messages[-1].content, "output": analysis(number, True)})
    write_set(tmp_path / "set", {"train": rows})
    summary = write_published(open_published(str(tmp_path / "set")), tmp_path / "out")
    assert (summary["counts"]["kept"], summary["rejected"]) == (65, 0)
    written = read(tmp_path / "out" / "train.jsonl")
    assert [row["prompt"][-1]["content"] for row in written] == [row["instruction"] for row in rows]


def test_problems_in_both_parts_are_told(tmp_path: Path) -> None:
    rows = [sft_row(number) for number in range(60)]
    write_set(tmp_path / "set", {"train": rows, "validation": rows[:7]})
    write_published(open_published(str(tmp_path / "set")), tmp_path / "out")
    assert "7 problems stand in both parts." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda n: {"question": str(n), "answer": "1"}, InputError, "has the columns answer, question; rows for sft"),
        (lambda n: {"instruction": f"Is {n} right?", "output": analysis(n, True)}, PromptError, "no template can be"),
        (
            lambda n: {**sft_row(n), "output": f"It is {n}."},
            PromptError,
            "0 of 40 outputs end in a line with Yes or No",
        ),
        (lambda n: {**sft_row(n), "output": "Hm. Yes, of course not"}, InputError, "text after the verdict: 40"),
    ],
)
def test_sets_that_cannot_be_imported(
    make: Callable[[int], dict[str, Any]], error: type[Exception], message: str, tmp_path: Path
) -> None:
    write_set(tmp_path / "set", {"train": [make(number) for number in range(40)]})
    with pytest.raises(error, match=message):
        write_published(open_published(str(tmp_path / "set")), tmp_path / "out")


def test_a_set_without_a_training_part(tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"validation": [sft_row(number) for number in range(40)]})
    with pytest.raises(InputError, match="has no part 'train'"):
        open_published(str(tmp_path / "set"))


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    source = stand_in(tmp_path / "set")
    command = [sys.executable, "-m", "rprm", "data", "import", f"{source}?data_dir=dpo", "-o", str(tmp_path / "out")]
    done = warm_torch().run([*command, "--json"])
    # 2 of 96 rows were rejected.
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["counts"]["kept"] == 94
    done = warm_torch().run(command)
    assert done.returncode == 3
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "82 train rows (41 Yes, 41 No; 82 problems)" in shown
    assert "2 input rows rejected" in shown
