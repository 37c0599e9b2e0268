"""Training problems that stand in a benchmark: planted repetitions are found, neighbours are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.data.gathering import (
    KNOWN_BENCHMARKS,
    BenchmarkProblem,
    ContaminationIndex,
    read_benchmarks,
    tokens,
)
from rprm.errors import InputError

#: 30 different words: 18 n-grams of 13.
LONG = " ".join(f"word{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(30))
CONVERT = (
    "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.  Enter your answer in the form "
    "$(r,\\theta),$ where $r > 0$ and $0 \\le \\theta < 2 \\pi.$"
)


def index(*problems: str, **options: Any) -> ContaminationIndex:
    return ContaminationIndex(
        [BenchmarkProblem("bench", f"item-{number}", problem) for number, problem in enumerate(problems)], **options
    )


def match(found: ContaminationIndex, problem: str) -> tuple[str, str, str, float] | None:
    """Benchmark, item, kind and share of the problem that is found."""
    removed = found.match(problem)
    assert removed is None or (removed.problem, removed.num_steps) == (problem, 0)
    return removed and (removed.benchmark, removed.item, removed.kind, removed.share)


class TestTokens:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("What is $2x + 1$?", "what is 2x+1"),
            ("\\(a^2\\)", "$a ^ 2$"),
            ("\\dfrac{1}{2}", "\\frac{1}{2}"),
            ("\\left(x\\right)", "(x)"),
            ("$1{,}000$ or $1,\\!000$ or 1,000", "1000 or 1000 or 1000"),
            ("$3 \\times 4$", "3 × 4"),
            ("$3 \\cdot 4$", "3 * 4"),
            ("a\\,b\\quad c", "a b c"),
            ("triangle $A B C$", "triangle $ABC$"),
            ("x ≤ 5 − 2", "x \\le 5 - 2"),
            ("\\text{if } x", "if x"),
            ("Janet’s ducks", "Janet's ducks"),
            ("\\begin{align*} x \\end{align*}", "$x$"),
            ("ＡＢＣ １２", "abc 12"),
            ("ﬁnd", "find"),
            (".5", "0.5"),
            ("STRASSE", "straße"),
        ],
    )
    def test_typesetting_makes_no_difference(self, one: str, other: str) -> None:
        # 1{,}000 is known by its braces alone, which are dropped first; compare the joined text as `exact` does.
        assert "".join(tokens(one)).replace(",", "") == "".join(tokens(other)).replace(",", "")

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("3 + 5", "3 - 5"),
            ("x^2", "x2 "),
            ("1.5", "15"),
            ("x < 2", "x > 2"),
            ("$\\sin x$", "$\\cos x$"),
            ("5%", "5"),
        ],
    )
    def test_what_the_problem_says_does(self, one: str, other: str) -> None:
        assert "".join(tokens(one)) != "".join(tokens(other))

    def test_words_numbers_and_operators(self) -> None:
        assert tokens("How many of 1,250 $\\frac{x}{2}$ cost £0.50?") == [
            "how", "many", "of", "1250", "frac", "x", "2", "cost", "0.50"
        ]  # fmt: skip
        assert tokens("求x的值") == ["求", "x", "的", "值"]
        assert tokens("?! {} $$ \\") == []
        assert tokens("") == []

    @given(st.text(max_size=60))
    def test_any_text_has_tokens_and_a_place_in_the_index(self, text: str) -> None:
        found = match(index(text), text)
        assert (found is not None) is bool(tokens(text))


class TestMatch:
    def test_equal_text_is_found_whatever_its_typesetting(self) -> None:
        found = match(index("other", "What is the value of $2x+1$?"), "WHAT is the value of \\(2x + 1\\)")
        assert found == ("bench", "item-1", "exact", 1.0)

    def test_a_changed_word_costs_the_n_grams_around_it(self) -> None:
        # 30 words have 18 n-grams of 13. Word 27 (of 0..29) stands in those that begin at 15, 16 and 17: 15 of 18 stay.
        words = LONG.split()
        changed = " ".join([*words[:27], "changed", *words[28:]])
        assert match(index(LONG), changed) == ("bench", "item-0", "overlap", round(15 / 18, 4))
        # In the middle it stands in 13 of them: 5 of 18 stay, less than half.
        changed = " ".join([*words[:15], "changed", *words[16:]])
        assert match(index(LONG), changed) is None
        assert match(index(LONG, overlap=0.25), changed) == ("bench", "item-0", "overlap", round(5 / 18, 4))

    def test_the_share_is_of_the_shorter_problem(self) -> None:
        # The benchmark's problem with instructions around it: all of its 18 n-grams are there.
        wrapped = (
            f"Solve the following task carefully step by step now {LONG} and put the final result into a box please"
        )
        assert match(index(LONG), wrapped) == ("bench", "item-0", "overlap", 1.0)
        assert match(index(wrapped), LONG) == ("bench", "item-0", "overlap", 1.0)

    def test_short_problems_are_found_by_equal_text_alone(self) -> None:
        # 12 words, no n-gram of 13.
        short = " ".join(LONG.split()[:12])
        assert match(index(LONG), short) is None
        assert match(index(short), LONG) is None
        assert match(index(short), short.upper()) == ("bench", "item-0", "exact", 1.0)
        assert match(index(LONG, ngram=12), short) == ("bench", "item-0", "overlap", 1.0)

    def test_the_problem_that_shares_most_is_named(self) -> None:
        words = LONG.split()
        less, more = " ".join([*words[:20], *"abcdefghij"]), " ".join([*words[:28], "y", "z"])
        found = match(index(less, more), f"{LONG} indeed")
        assert found is not None
        assert found[1] == "item-1"
        # Equal text goes first, and the first of equal ones.
        assert match(index(more, LONG, LONG), LONG) == ("bench", "item-1", "exact", 1.0)

    def test_other_numbers_in_short_problems_are_other_problems(self) -> None:
        bench = index("A plane flies 1200 miles in 3 hours. How far does it fly in 5 hours?")
        assert bench.match("A plane flies 900 miles in 2 hours. How far does it fly in 7 hours?") is None

    def test_long_set_phrases_are_taken_for_the_problem(self) -> None:
        # The safe side: this is a false alarm, and removed.jsonl shows it.
        found = match(index(CONVERT), CONVERT.replace("(0,3)", "(-4,0)"))
        assert found is not None
        assert found[2] == "overlap"

    @pytest.mark.parametrize("problem", ["", "   ", "$$", "?", "\ud800"])
    def test_nothing_matches_nothing(self, problem: str) -> None:
        assert match(index("", "$", LONG), problem) is None

    @pytest.mark.parametrize("options", [{"ngram": 0}, {"overlap": 0.0}, {"overlap": 1.5}])
    def test_settings_that_mean_nothing(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="n-gram"):
            index(**options)

    def test_a_huge_problem(self) -> None:
        assert match(index(LONG), "x1 " * 200_000 + LONG) == ("bench", "item-0", "overlap", 1.0)


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


class TestReadBenchmarks:
    def test_a_file_and_its_name(self, tmp_path: Path) -> None:
        path = write(tmp_path / "aime.jsonl", {"id": 60, "problem": "p"}, {"question": "q", "id": ""})
        (plain,) = read_benchmarks(str(path))
        (named,) = read_benchmarks(f"aime24={path}")
        assert [(item.benchmark, item.item, item.problem) for item in plain.problems] == [
            ("aime", "60", "p"), ("aime", "line-2", "q")
        ]  # fmt: skip
        assert named.name == "aime24"
        assert named.source.digest == plain.source.digest

    def test_every_file_of_a_folder_is_a_part(self, tmp_path: Path) -> None:
        write(tmp_path / "math" / "b.jsonl", {"problem": "p"})
        write(tmp_path / "math" / "a.json", {"problem": "q"})
        write(tmp_path / "math" / "notes.txt", "nothing")
        assert [part.name for part in read_benchmarks(str(tmp_path / "math"))] == ["math/a", "math/b"]
        assert [part.name for part in read_benchmarks(f"m={tmp_path / 'math'}")] == ["m/a", "m/b"]

    def test_every_text_that_is_a_problem_counts(self, tmp_path: Path) -> None:
        rows = (
            # PRMBench: before and after it was modified.
            {"idx": "a", "original_question": "o", "modified_question": "m", "question": "o"},
            {"problem": "p", "question": "p", "query": "Question: p"},
            {"query": "only"},
            {"problem": None, "prompt": "asked"},
        )
        (part,) = read_benchmarks(str(write(tmp_path / "x.jsonl", *rows)))
        assert [item.problem for item in part.problems] == ["o", "m", "p", "only", "asked"]

    def test_what_cannot_be_read_whole_excludes_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jsonl", {"problem": "p"}, {"text": "q", "id": 1})
        with pytest.raises(InputError, match=r"x\.jsonl, line 2: no problem found.*one of problem, question.*id, text"):
            read_benchmarks(str(path))
        path = write(tmp_path / "x.jsonl", {"problem": "p"}, "{torn")
        with pytest.raises(InputError, match=r"x\.jsonl, line 2: not JSON.*must be read whole"):
            read_benchmarks(str(path))
        with pytest.raises(InputError, match=r"x\.jsonl, line 1: a record must be a JSON object"):
            read_benchmarks(str(write(tmp_path / "x.jsonl", "[[1]]")))
        with pytest.raises(InputError, match="no rows"):
            read_benchmarks(str(write(tmp_path / "x.jsonl")))
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"no \.jsonl or \.json file"):
            read_benchmarks(str(tmp_path / "empty"))

    def test_names(self) -> None:
        with pytest.raises(InputError, match=r"aime25: no such benchmark; known are processbench, prmbench"):
            read_benchmarks("aime25")
        with pytest.raises(InputError, match=r"college_math: no such benchmark; .* others as NAME=PATH"):
            read_benchmarks("college_math")
        with pytest.raises(InputError, match=r"missing\.jsonl: no such file"):
            read_benchmarks("aime24=missing.jsonl")

    def test_known_benchmarks_are_read_from_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        asked: list[tuple[str, str | None, str]] = []

        class Api:
            def dataset_info(self, name: str, revision: str | None = None) -> Any:
                return type("Info", (), {"sha": "abc123"})

        def load(path: str, config: str | None, *, split: str, **options: Any) -> Any:
            asked.append((path, config, split))
            return iter([{"problem": f"{path} {split}", "id": "1"}])

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(datasets, "load_dataset", load)
        parts = read_benchmarks("processbench")
        assert [part.name for part in parts] == [
            f"processbench/{subset}" for subset in ("gsm8k", "math", "olympiadbench", "omnimath")
        ]
        assert {part.source.digest for part in parts} == {"revision:abc123"}
        assert [part.name for part in read_benchmarks("gsm8k")] == ["gsm8k"]
        assert asked[-1] == ("openai/gsm8k", "main", "test")
        (own,) = read_benchmarks("mine=someone/theirs?split=dev")
        assert (own.name, asked[-1]) == ("mine", ("someone/theirs", None, "dev"))
        (bare,) = read_benchmarks("someone/theirs?split=dev")
        assert bare.name == "theirs"
        for name in KNOWN_BENCHMARKS:
            if name != "prmbench":
                assert read_benchmarks(name)

    def test_prmbench_gives_its_modified_and_its_original_problems(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """From the hub through the benchmark's own reader, which here is given a file of its form."""
        import rprm.data.gathering as contamination

        row = {
            "original_question": "What is 1 + 1?",
            "modified_question": "What is 1 + 1, roughly?",
            "original_process": ["2."],
            "modified_process": ["3."],
            "modified_steps": [1],
            "error_steps": [1],
            "reason": "",
            "idx": "x",
            "question": "What is 1 + 1?",
            "classification": "redundency",
        }
        path = tmp_path / "prmbench.jsonl"
        path.write_text(json.dumps(row) + "\n")
        read = contamination.read_prmbench
        monkeypatch.setattr(contamination, "read_prmbench", lambda name: read(path))
        (part,) = read_benchmarks("prmbench")
        assert {item.problem for item in part.problems} == {"What is 1 + 1?", "What is 1 + 1, roughly?"}
        path.write_text(json.dumps(row) + "\n{broken\n")
        with pytest.raises(InputError, match=r"prmbench\.jsonl, line 2: not JSON.*must be read whole"):
            read_benchmarks("prmbench")


def test_real_benchmarks_are_read_and_found_in_each_other(real_data: Path) -> None:
    parts = read_benchmarks(f"math={real_data / 'math'}")
    assert {part.name for part in parts} >= {"math/college_math", "math/gsm8k", "math/olympiadbench"}
    found = ContaminationIndex(item for part in parts for item in part.problems)
    # ProcessBench's GSM8K problems come from GSM8K's test set, all of which is there.
    (subset,) = read_benchmarks(str(real_data / "processbench" / "gsm8k.jsonl"))
    problems = {item.problem for item in subset.problems}
    matches = [found.match(problem) for problem in problems]
    assert all(one is not None and one.benchmark == "math/gsm8k" for one in matches)
    # Its training set is another: two of 7,473 problems (a train in place of a plane) share half of their n-grams.
    train = real_data / "gsm8k_train" / "train.jsonl"
    questions = [json.loads(line)["question"] for line in train.read_text().split("\n") if line]
    repeated = [question for question in questions if found.match(question)]
    assert len(repeated) <= 5
    assert all("At the same rate" in question for question in repeated)
