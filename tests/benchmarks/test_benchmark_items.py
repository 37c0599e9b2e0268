"""Reading the benchmarks: files, folders, the hub, and rows that cannot be used."""

from __future__ import annotations

import errno
import gzip
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rprm.benchmarks.items import Texts
from rprm.benchmarks.prmbench import PRMBENCH_CLASSES, read_prmbench
from rprm.benchmarks.processbench import read_processbench
from rprm.errors import InputError
from rprm.reading import Rejected
from rprm.records import Solution


def processbench_row(identifier: str = "gsm8k-0", **changes: Any) -> dict[str, Any]:
    row = {
        "id": identifier,
        "generator": "Qwen2-7B-Instruct",
        "problem": "What is 2 + 2?",
        "steps": ["2 + 2 = 5.", "The answer is 5."],
        "final_answer_correct": False,
        "label": 0,
    }
    return row | changes


def prmbench_row(idx: str = "prm_test_p1_0", classification: str = "circular", **changes: Any) -> dict[str, Any]:
    row = {
        "original_question": "What is 2 + 2?",
        "modified_question": "What is 2 + 2, given 1 + 1?",
        "original_process": ["2 + 2 = 4."],
        "modified_process": ["Let x = 4.", "Then 2 + 2 = x.", "So 2 + 2 = 4."],
        "modified_steps": [1, 2],
        "error_steps": [2],
        "reason": "circular",
        "idx": idx,
        "question": "What is 2 + 2?",
        "classification": classification,
    }
    return row | changes


def write(path: Path, rows: list[Any]) -> Path:
    lines = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    data = lines.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


class TestTexts:
    def test_in_memory_and_on_the_disk_they_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rprm.benchmarks.items._MAX_TEXT_BYTES", 200)  # of 10 solutions some 600
        texts, solutions = Texts(), []
        for number in range(10):
            steps = ("", "é\n\u2028", f"step {number}")[: number % 4]
            solutions.append(
                Solution(id=f"s{number}", problem=f"\U0001f600 {number}\n", steps=steps, label=number % 3 - 1)
            )
            stored = texts.put(solutions[-1])
            assert (stored.id, stored.num_steps, stored.label) == (f"s{number}", len(steps), number % 3 - 1)
            assert stored.loaded == solutions[-1]  # and what is put after it stands behind the others
            assert (stored.problem, stored.steps) == (solutions[-1].problem, steps)
        again = [texts.put(solution) for solution in solutions]
        assert [stored.loaded for stored in reversed(again)] == solutions[::-1]

    def test_a_full_disk_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        texts = Texts()
        monkeypatch.setattr(texts._file, "write", full)
        with pytest.raises(InputError, match=r"No space left on device \(TMPDIR"):
            texts.put(Solution(id="a", problem="p", steps=("s",)))

    def test_memory_holds_none_of_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """100 items of 100 KB, which read at once would take 10 MB."""
        monkeypatch.setattr("rprm.benchmarks.items._MAX_TEXT_BYTES", 1 << 18)
        rows = (processbench_row(f"math-{number}", steps=["x" * 100_000]) for number in range(100))
        path = write(tmp_path / "math.jsonl", [json.dumps(row) for row in rows])
        tracemalloc.start()
        try:
            items = read_processbench(path)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
            assert sum(len(row.steps[0]) for row in items if isinstance(row, Solution)) == 10_000_000
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    def test_the_rows_to_judge_are_rejected_ones_first(self, tmp_path: Path) -> None:
        path = write(tmp_path / "math.jsonl", [processbench_row("math-0"), "{broken", processbench_row("math-1")])
        items = read_processbench(path)
        found = [row.line if isinstance(row, Rejected) else row.id for row in items]
        assert found == [2, "math-0", "math-1"]
        assert [row.id for row in items.after(2) if isinstance(row, Solution)] == ["math-1"]


class TestProcessBench:
    def test_a_folder_has_a_file_per_subset(self, tmp_path: Path) -> None:
        write(tmp_path / "gsm8k.jsonl", [processbench_row("gsm8k-0"), processbench_row("gsm8k-1", label=-1)])
        (tmp_path / "math.json").write_text(json.dumps([processbench_row("math-0")], indent=1))
        write(tmp_path / "omnimath.jsonl.gz", [processbench_row("omnimath-0")])
        (tmp_path / "README.md").write_text("not a subset")

        items = read_processbench(tmp_path)

        assert [(item.subset, item.id, item.label) for item in items.items] == [
            ("gsm8k", "gsm8k-0", 0),
            ("gsm8k", "gsm8k-1", -1),
            ("math", "math-0", 0),
            ("omnimath", "omnimath-0", 0),
        ]
        first = items.items[0]
        assert first.solution.problem == "What is 2 + 2?"
        assert first.solution.steps == ("2 + 2 = 5.", "The answer is 5.")
        assert (first.solution.label, first.generator, first.final_answer_correct) == (0, "Qwen2-7B-Instruct", False)
        assert items.solutions[0] == first.solution.loaded
        assert [Path(source.name).name for source in items.sources] == ["gsm8k.jsonl", "math.json", "omnimath.jsonl.gz"]
        assert all(source.digest.startswith("sha256:") for source in items.sources)

    def test_in_one_file_the_id_names_the_subset_or_else_the_file_does(self, tmp_path: Path) -> None:
        rows = [processbench_row(identifier) for identifier in ("gsm8k-12", "omnimath-3", "mine-4", "x")]
        items = read_processbench(write(tmp_path / "mixed.v2.jsonl", rows)).items
        assert [item.subset for item in items] == ["gsm8k", "omnimath", "mixed", "mixed"]

    def test_malformed_rows_are_set_aside_with_file_and_line(self, tmp_path: Path) -> None:
        rows = [
            processbench_row("math-0"),
            '{"id": "math-1", "problem"',
            processbench_row("math-2", label=2),
            processbench_row("math-3", label=None),
            processbench_row("math-4", label=True),
            processbench_row("math-5", steps=[]),
            processbench_row("math-6", steps=["a", None]),
            processbench_row("math-7", problem=" "),
            processbench_row("math-0"),
            [1],
            {key: value for key, value in processbench_row().items() if key != "id"},
            '{"id": "math-8", "problem": "\\ud800", "steps": ["a"], "label": 0}',
            processbench_row("math-9", steps=["", "  "], label=1),
        ]
        path = write(tmp_path / "math.jsonl", rows)
        items = read_processbench(path)
        # An empty step is a step: it is counted, not dropped.
        assert [item.id for item in items.items] == ["math-0", "math-9"]
        assert [row.line for row in items.rejected] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        assert all(row.file == str(path) for row in items.rejected)
        reasons = [row.reason for row in items.rejected]
        for reason, part in zip(
            reasons,
            (
                "not JSON",
                "0 to 1",
                "'label'",
                "'label'",
                "'steps'",
                "'steps[1]'",
                "'problem'",
                "earlier row",
                "object",
                "'id'",
            ),
            strict=False,
        ):
            assert part in reason

    def test_ids_are_unique_across_subsets(self, tmp_path: Path) -> None:
        write(tmp_path / "gsm8k.jsonl", [processbench_row("gsm8k-0")])
        write(tmp_path / "math.jsonl", [processbench_row("gsm8k-0"), processbench_row("math-0")])
        items = read_processbench(tmp_path)
        assert [item.id for item in items.items] == ["gsm8k-0", "math-0"]
        assert [(Path(row.file).name, row.line) for row in items.rejected] == [("math.jsonl", 1)]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [([], "no rows"), ([{"id": "x"}], "none of 1 rows .* the first, .*line 1: 'problem' is missing")],
    )
    def test_nothing_to_read_is_an_error(self, tmp_path: Path, rows: list[Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_processbench(write(tmp_path / "math.jsonl", rows))

    def test_a_folder_without_subsets_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no gsm8k\.jsonl, math"):
            read_processbench(tmp_path)

    def test_a_subset_in_two_files_is_an_error(self, tmp_path: Path) -> None:
        write(tmp_path / "math.jsonl", [processbench_row("math-0")])
        write(tmp_path / "math.json", [processbench_row("math-1")])
        with pytest.raises(InputError, match=r"both math\.json and math\.jsonl"):
            read_processbench(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"absent/deep/x\.jsonl: no such file"):
            read_processbench(tmp_path / "absent/deep/x.jsonl")

    def test_a_revision_of_a_file_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "math.jsonl", [processbench_row("math-0")])
        with pytest.raises(InputError, match="belongs to a hub data set"):
            read_processbench(path, revision="main")

    def test_real_items(self, real_data: Path) -> None:
        items = read_processbench(real_data / "processbench")
        assert items.rejected == ()
        whole = {"gsm8k": 200, "math": 300, "olympiadbench": 80, "omnimath": 80}
        counts = Counter(item.subset for item in items.items)
        assert counts == (whole if real_data.name == "data" else dict.fromkeys(whole, 20))


class TestPRMBench:
    def test_rows_become_items(self, tmp_path: Path) -> None:
        item = read_prmbench(write(tmp_path / "p.jsonl", [prmbench_row(error_steps=[3, 2])])).items[0]
        assert item.id == "circular_prm_test_p1_0"
        assert item.solution.problem == "What is 2 + 2, given 1 + 1?"
        assert item.solution.steps == ("Let x = 4.", "Then 2 + 2 = x.", "So 2 + 2 = 4.")
        # 1-based steps 2 and 3 are the indices 1 and 2; the earliest is the label.
        assert item.wrong_steps == {1, 2}
        assert item.solution.label == 1
        assert item.is_clean

    def test_redundency_rows_give_the_original_too(self, tmp_path: Path) -> None:
        rows = [prmbench_row("prm_train_p1_4", "redundency"), prmbench_row("prm_train_p1_4", "confidence")]
        items = read_prmbench(write(tmp_path / "p.json", rows)).items
        assert [item.id for item in items] == [
            "redundency_prm_train_p1_4",
            "correct_prm_train_p1_4",
            "confidence_prm_train_p1_4",
        ]
        original = items[1]
        assert original.classification == "correct"
        assert original.solution.steps == ("2 + 2 = 4.",)
        assert (original.solution.label, original.error_steps) == (-1, ())
        assert not items[0].is_clean

    def test_the_first_row_of_a_key_wins(self, tmp_path: Path) -> None:
        rows = [prmbench_row(), prmbench_row(modified_process=["another"], error_steps=[])]
        items = read_prmbench(write(tmp_path / "p.jsonl", rows))
        assert len(items.items) == 1
        assert len(items.items[0].solution.steps) == 3
        assert items.repeated == ("circular_prm_test_p1_0",)
        assert items.rejected == ()

    def test_idx_with_its_class_in_front_gives_the_same_key(self, tmp_path: Path) -> None:
        items = read_prmbench(write(tmp_path / "p.jsonl", [prmbench_row("circular_prm_train_p1_0")])).items
        assert (items[0].id, items[0].is_clean) == ("circular_prm_train_p1_0", False)

    def test_error_steps_past_the_end_are_left_out(self, tmp_path: Path) -> None:
        rows = [prmbench_row("prm_test_p1_0", error_steps=[3, 4]), prmbench_row("prm_test_p1_1", error_steps=[9])]
        items = read_prmbench(write(tmp_path / "p.jsonl", rows)).items
        assert [item.wrong_steps for item in items] == [{2}, set()]
        assert [item.solution.label for item in items] == [2, None]

    def test_malformed_rows_are_set_aside(self, tmp_path: Path) -> None:
        rows = [
            prmbench_row("prm_test_p1_0"),
            prmbench_row("prm_test_p1_1", classification="redundancy"),
            prmbench_row("prm_test_p1_2", error_steps=[0]),
            prmbench_row("prm_test_p1_3", error_steps=["2"]),
            prmbench_row("prm_test_p1_4", error_steps=None),
            prmbench_row("prm_test_p1_5", modified_process="one step"),
            prmbench_row("prm_test_p1_6", "redundency", original_process=None),
            prmbench_row(7),  # type: ignore[arg-type]
        ]
        items = read_prmbench(write(tmp_path / "p.jsonl", rows))
        assert [item.id for item in items.items] == ["circular_prm_test_p1_0"]
        assert [row.line for row in items.rejected] == [2, 3, 4, 5, 6, 7, 8]
        assert "known are redundency, circular" in items.rejected[0].reason

    def test_a_folder_is_read_in_the_order_of_names(self, tmp_path: Path) -> None:
        write(tmp_path / "b.jsonl", [prmbench_row("prm_test_p1_1"), prmbench_row("prm_test_p1_0", error_steps=[])])
        write(tmp_path / "a.jsonl.gz", [prmbench_row("prm_test_p1_0")])
        items = read_prmbench(tmp_path)
        assert [item.id for item in items.items] == ["circular_prm_test_p1_0", "circular_prm_test_p1_1"]
        assert items.items[0].error_steps == (2,)
        assert len(items.sources) == 2

    def test_real_items(self, real_data: Path) -> None:
        items = read_prmbench(real_data / "prmbench" / "sample.jsonl")
        assert items.rejected == ()
        # 495 rows, 60 of them redundency rows, one key twice; in the excerpt 20 and 2.
        num_items, repeated = {
            "excerpts": (20 + 2, ()), "data": (494 + 60, ("multi_solutions_prm_test_p2_997",))
        }[real_data.name]  # fmt: skip
        assert (len(items.items), items.repeated) == (num_items, repeated)
        # The row with 17 steps stands before the one with 12.
        assert [len(item.solution.steps) for item in items.items if item.id in repeated] == [17] * len(repeated)
        assert {item.classification for item in items.items} == {*PRMBENCH_CLASSES, "correct"}


class TestHub:
    """The hub's two calls are replaced: the revision is made up, and rows come from files through the real library."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        import datasets
        import huggingface_hub

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        load_dataset = datasets.load_dataset
        hub = SimpleNamespace(folder=tmp_path, asked=[], loaded=[], chunksize=10 << 20)

        def dataset_info(self: Any, name: str, *, revision: str | None = None) -> SimpleNamespace:
            # A branch that moves on between two questions; a commit stays what it is.
            hub.asked.append((name, revision))
            moved = "0badc0de" if len(hub.asked) > 1 else "5cc7683d"
            return SimpleNamespace(sha=revision if revision == "5cc7683d" else moved)

        def load(name: str, config: Any = None, *, split: str, revision: str, **options: Any) -> Any:
            hub.loaded.append((name, split, revision))
            files = {split: str(hub.folder / f"{split}.jsonl")}
            return load_dataset("json", data_files=files, split=split, chunksize=hub.chunksize, **options)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(datasets, "load_dataset", load)
        return hub

    def test_processbench_splits_are_subsets(self, hub: SimpleNamespace) -> None:
        for subset in ("gsm8k", "math", "olympiadbench", "omnimath"):
            write(
                hub.folder / f"{subset}.jsonl",
                [processbench_row(f"{subset}-0"), processbench_row(f"{subset}-1", label=9)],
            )
        items = read_processbench(revision="v1")
        assert [(item.subset, item.id) for item in items.items] == [
            (subset, f"{subset}-0") for subset in ("gsm8k", "math", "olympiadbench", "omnimath")
        ]
        assert [row.line for row in items.rejected] == [2, 2, 2, 2]
        # What was asked for is resolved once; every split is read from the commit found.
        assert hub.asked[0] == ("Qwen/ProcessBench", "v1")
        assert {revision for _, _, revision in hub.loaded} == {"5cc7683d"}
        assert {source.digest for source in items.sources} == {"revision:5cc7683d"}

    def test_prmbench_columns_that_first_appear_late(self, hub: SimpleNamespace) -> None:
        """The benchmark's last 165 rows have two columns more; in small blocks the schema cannot be guessed."""
        late = prmbench_row("prm_test_p2_1", "multi_solutions", error_steps=[], ground_truth="4", original_response="4")
        write(hub.folder / "train.jsonl", [prmbench_row(f"prm_test_p1_{number}") for number in range(20)] + [late])
        hub.chunksize = 1_000
        items = read_prmbench("someone/PRMBench_Copy")
        assert len(items.items) == 21
        assert items.rejected == ()
        assert items.items[-1].id == "multi_solutions_prm_test_p2_1"
        assert hub.loaded == [("someone/PRMBench_Copy", "train", "5cc7683d")]
        assert items.sources[0].digest == "revision:5cc7683d"

    def test_a_hub_that_does_not_answer_is_an_error_with_the_name(
        self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("offline")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
        with pytest.raises(InputError, match=r"hitsmy/PRMBench_Preview.*offline"):
            read_prmbench()

    def test_a_split_that_is_missing_is_an_error(self, hub: SimpleNamespace) -> None:
        with pytest.raises(InputError, match=r"PRMBench_Preview.*: cannot be read"):
            read_prmbench()
