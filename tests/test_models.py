"""Known models: aliases, the released prompt from a stand-in data set of its layout, and `rprm models`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import random
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import released_tokenizers
from typer.testing import CliRunner

from rprm import RPRM, load_rewarder, models
from rprm.cli.app import app
from rprm.cli.options import AnalysisOptions, PolicyOptions
from rprm.cli.search import search_rewarder
from rprm.engines import load_engine
from rprm.errors import EngineError, InputError, PromptError
from rprm.models import MODELS, cache_folder, find_model, released_template, resolve, template_for, training_template
from rprm.presets import judge_settings
from rprm.prompts import PromptTemplate, import_template, load_template
from rprm.rewarders import is_classifier
from rprm.rewarders.classifier import ServedClassifier
from rprm.rewarders.rprm import Judge

R_PRM = next(known for known in MODELS if known.alias == "r-prm-7b")

#: The shape of R-PRM's instructions (fixed text, problem, previous steps, step, fixed text that ends in a space), in a
#: wording of our own.
WORDING = PromptTemplate(
    "stand-in",
    "You grade homework, one line at a time.\n\nAspects:\n**Sources**: where does each number come from?\n"
    '**Sums**: is {x} = \\boxed{2} right?\nEnd with "Is the step correct (Yes/No)? X".\n\nExercise: {{problem}}\n'
    "Lines Before: {{previous_steps}}\nThis Line: Step {{step_number}}: {{step}}\nNow grade This Line.\nAnswer: ",
    step_separator="\n",
    no_previous_steps="This Line opens the solution, so no lines stand before it.",
)
SYSTEM = "You are a helpful assistant."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPRM_CACHE", str(tmp_path / "cache"))
    models._local_engine.cache_clear()
    models._told.clear()


def rows(count: int, seed: int, *, pairs: bool = False) -> list[dict[str, str]]:
    draw = random.Random(seed)
    made = []
    for number in range(count):
        names = ["Ann", "Ben", "If 3 boys", "Let $x$", "∑ of", "How many\n\nof"]
        problem = f"{draw.choice(names)} and {number} more: what is it{draw.choice('?.')}"
        steps = [f"{draw.choice('abcdef')} = {draw.random():.3f}{draw.choice(['.', '', '?'])}" for _ in range(5)]
        index = draw.randrange(5)
        text = WORDING.render(problem, steps, index).messages[-1].content
        right = f"Fine.\nVerification: Is the step correct (Yes/No)? {draw.choice(['Yes', 'No'])}"
        made.append({"instruction": text} | ({"chosen": right, "rejected": "Hm."} if pairs else {"output": right}))
    return made


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A data set in the layout of kevinpro/R-PRM: parquet files, no `configs:`, other columns under dpo/ than sft/."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    folder = tmp_path / "R-PRM"
    for number, part in enumerate(("dpo/train", "dpo/validation", "sft/train", "sft/validation")):
        (folder / part).mkdir(parents=True)
        table = pyarrow.Table.from_pylist(rows(120, number, pairs=part.startswith("dpo")))
        for shard in range(2):
            parquet.write_table(table.slice(60 * shard, 60), folder / part / f"{shard:05}.parquet")
    return folder


class Hub:
    """Stands in for the hub: one data set, at one revision; or nothing, where it is offline."""

    revision = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        self.online = True
        self.num_reads = 0
        load_dataset = datasets.load_dataset
        hub = self

        class Api:
            def dataset_info(self, path: str, revision: str | None = None) -> Any:
                if not hub.online:
                    raise ConnectionError("no route to the hub")
                assert path == "kevinpro/R-PRM"
                return type("Info", (), {"sha": hub.revision})

        def load(path: str, *arguments: Any, revision: str | None = None, **options: Any) -> Any:
            if path == "kevinpro/R-PRM":
                assert (hub.online, revision) == (True, hub.revision)
                hub.num_reads += 1
                path = str(folder)
            return load_dataset(path, *arguments, **options)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.fixture
def hub(published: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(published, monkeypatch)


def machine(monkeypatch: pytest.MonkeyPatch, *, vllm: bool, gpu: bool) -> None:
    import torch

    found = importlib.util.find_spec
    monkeypatch.setattr(
        models, "find_spec", lambda name: (found("json") if vllm else None) if name == "vllm" else found(name)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    models._local_engine.cache_clear()


# --- records and aliases --------------------------------------------------------------------------------------------


def test_every_record_is_whole():
    names = [name.casefold() for known in MODELS for name in (known.alias, known.hub_id)]
    assert len(set(names)) == len(names)
    for known in MODELS:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", known.hub_id)
        assert "/" not in known.alias
        assert (known.prompt is None) is (known.layout is not None) is (known.kind == "classifier")
        assert 0 < known.threshold < 1
        stated = {"threshold", "prompt" if known.prompt else "layout"} | (
            {"context"} if known.context_length else set()
        )
        assert stated <= set(known.sources), known.alias
        assert find_model(known.alias) is find_model(known.hub_id.upper()) is known
    wanted = """kevinpro/R-PRM-7B-DPO Qwen/Qwen2.5-Math-PRM-7B Qwen/Qwen2.5-Math-PRM-72B Qwen/Qwen2.5-Math-7B-PRM800K
        peiyi9979/math-shepherd-mistral-7b-prm Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B
        Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B RLHFlow/Llama3.1-8B-PRM-Mistral-Data
        RLHFlow/Llama3.1-8B-PRM-Deepseek-Data infly/Universal-PRM-7B jinachris/PURE-PRM-7B"""
    assert {known.hub_id for known in MODELS} >= set(wanted.split())


@pytest.mark.parametrize(
    ("vllm", "gpu", "engine"),
    [(True, True, "vllm"), (True, False, "transformers"), (False, True, "transformers")],
)
def test_an_alias_is_what_this_machine_runs(monkeypatch: pytest.MonkeyPatch, vllm: bool, gpu: bool, engine: str):
    machine(monkeypatch, vllm=vllm, gpu=gpu)
    assert resolve("r-prm-7b").spec == f"{engine}:kevinpro/R-PRM-7B-DPO"
    assert resolve("r-prm-7b?dtype=float16&seed=1").spec == f"{engine}:kevinpro/R-PRM-7B-DPO?dtype=float16&seed=1"
    assert resolve("kevinpro/R-PRM-7B-DPO").spec == f"{engine}:kevinpro/R-PRM-7B-DPO"
    assert resolve("qwen-prm-7b?layout=qwen").spec == "classifier:Qwen/Qwen2.5-Math-PRM-7B?layout=qwen"
    assert "vllm" not in sys.modules


@pytest.mark.parametrize(
    "spec",
    [
        "vllm:kevinpro/R-PRM-7B-DPO",
        "transformers:kevinpro/r-prm-7b-dpo?dtype=float32",
        "openai:kevinpro/R-PRM-7B-DPO@http://localhost:8000/v1?concurrency=4",
    ],
)
def test_a_hub_id_is_the_known_model_in_every_engine(spec: str):
    resolved = resolve(spec)
    assert (resolved.spec, resolved.known) == (spec, R_PRM)


@pytest.mark.parametrize(
    "spec",
    [
        "embedded",
        "scripted:?yes_rate=1",
        "vllm:Qwen/Qwen2.5-7B-Instruct",
        "openai:gpt-4o@http://localhost/v1",
        "scripted:r-prm-7b",
        "",
        "?",
        "r-prm",
    ],
)
def test_any_other_spec_comes_back_as_it_is(spec: str):
    assert resolve(spec) == models.ResolvedModel(spec, None)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("vllm:r-prm-7b?seed=1", "vllm:kevinpro/R-PRM-7B-DPO?seed=1"),
        ("transformers:R-PRM-7B", "transformers:kevinpro/R-PRM-7B-DPO"),
        # There the name is what the server calls the model.
        ("openai:r-prm-7b@http://localhost:8000/v1", "openai:r-prm-7b@http://localhost:8000/v1"),
        ("classifier:qwen-prm-7b", "classifier:Qwen/Qwen2.5-Math-PRM-7B"),
        ("classifier:qwen-prm-7b@http://localhost:8000", "classifier:qwen-prm-7b@http://localhost:8000"),
    ],
)
def test_an_alias_is_the_known_model_in_every_engine(spec: str, wanted: str):
    resolved = resolve(spec)
    assert resolved.spec == wanted
    assert resolved.known is find_model("qwen-prm-7b" if "qwen" in spec else "r-prm-7b")


def test_a_served_classifier_under_its_alias_has_its_layout_and_tokenizer():
    served = load_rewarder("classifier:qwen-prm-7b@http://localhost:8000")
    assert isinstance(served, ServedClassifier)
    assert (served.target, served._settings.layout, served._tokenizer) == (
        "qwen-prm-7b",
        "qwen",
        "Qwen/Qwen2.5-Math-PRM-7B",
    )


def test_a_folder_of_that_name_is_not_the_known_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kevinpro" / "R-PRM-7B-DPO").mkdir(parents=True)
    (tmp_path / "r-prm-7b").mkdir()
    assert resolve("vllm:kevinpro/R-PRM-7B-DPO").known is None
    assert resolve("vllm:r-prm-7b").known is None


@pytest.mark.parametrize(
    ("spec", "use"),
    [
        ("vllm:Qwen/Qwen2.5-Math-PRM-7B", "writes no analyses: use qwen-prm-7b or classifier:Qwen/Qwen2.5-Math-PRM-7B"),
        ("classifier:kevinpro/R-PRM-7B-DPO", "writes analyses: use r-prm-7b or "),
    ],
)
def test_a_model_of_the_other_kind_is_refused_with_the_right_spec(spec: str, use: str):
    with pytest.raises(EngineError, match=use):
        resolve(spec)


def test_aliases_stand_wherever_a_spec_does():
    assert load_engine("r-prm-7b?dtype=float32").spec == "transformers:kevinpro/R-PRM-7B-DPO?dtype=float32"
    assert is_classifier("math-shepherd-7b?dtype=float32")
    assert not is_classifier("r-prm-7b")
    classifier = load_rewarder("math-shepherd-7b?dtype=float32")
    assert classifier.spec == "classifier:peiyi9979/math-shepherd-mistral-7b-prm?dtype=float32"
    with pytest.raises(EngineError, match="unknown option 'dtipe'"):
        load_engine("r-prm-7b?dtipe=float32")


def test_the_threshold_is_the_records_unless_another_is_given(monkeypatch: pytest.MonkeyPatch):
    changed = {
        known.alias: dataclasses.replace(known, threshold=0.61)
        for known in (R_PRM, find_model("skywork-prm-7b"))
        if known is not None
    }
    monkeypatch.setattr(models, "_BY_NAME", changed | {known.hub_id.casefold(): known for known in changed.values()})
    assert judge_settings("r-prm-7b").threshold == judge_settings("vllm:kevinpro/R-PRM-7B-DPO").threshold == 0.61
    assert judge_settings("vllm:someone/else").threshold == 0.5
    assert load_rewarder("r-prm-7b", prompt="critique").threshold == 0.61
    assert load_rewarder("r-prm-7b", prompt="critique", threshold=0.4).threshold == 0.4
    assert load_rewarder("skywork-prm-7b").threshold == 0.61
    assert load_rewarder("skywork-prm-7b?threshold=0.3").threshold == 0.3


# --- the released prompt --------------------------------------------------------------------------------------------


def test_the_released_prompt_is_read_once_and_then_without_a_network(hub: Hub):
    judge = load_rewarder("r-prm-7b")
    assert hub.num_reads == 1
    template = judge.template
    assert not template.chat
    # The manifest's two facts: the revision in the name, and the digest of the content.
    assert template.name == f"kevinpro/R-PRM@{hub.revision}"
    steps = ["a = 1.", "b = 2."]
    [first] = template.render("What is a + b?", steps, 0).messages
    [second] = template.render("What is a + b?", steps, 1).messages
    # The rendering written out; around the assistant tag stand a backslash and an n.
    assert second.content == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "You grade homework, one line at a time.\n\nAspects:\n**Sources**: where does each number come from?\n"
        '**Sums**: is {x} = \\boxed{2} right?\nEnd with "Is the step correct (Yes/No)? X".\n\n'
        "Exercise: What is a + b?\nLines Before: Step 1: a = 1.\nThis Line: Step 2: b = 2.\nNow grade This Line.\n"
        "Answer: <|im_end|>\\n<|im_start|>assistant\\n"
    )
    assert (
        "Lines Before: This Line opens the solution, so no lines stand before it.\nThis Line: Step 1" in first.content
    )
    assert template.verdict.marker == "Is the step correct (Yes/No)?"

    hub.online = False
    again = template_for("vllm:kevinpro/R-PRM-7B-DPO")
    assert (again, again.name, again.digest) == (template, template.name, template.digest)
    assert hub.num_reads == 1
    assert [path.name for path in (cache_folder() / "prompts").iterdir()] == ["kevinpro--R-PRM.toml"]


@pytest.mark.parametrize("spec", ["r-prm-7b", "transformers:r-prm-7b"])
def test_an_alias_has_the_released_prompt_beside_a_folder_of_that_name(
    spec: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kevinpro" / "R-PRM-7B-DPO").mkdir(parents=True)
    with RPRM(spec) as prm:
        templates = [judge.template for judge in (prm.rewarder, prm._home.in_full) if isinstance(judge, Judge)]
    assert templates == 2 * [released_template(R_PRM)]
    policy = PolicyOptions().policy(spec)
    rewarder = search_rewarder(spec, AnalysisOptions(), policy, spec)
    assert isinstance(rewarder, Judge)
    assert (rewarder.engine, rewarder.template) == (policy.engine, templates[0])


def test_a_served_alias_has_the_released_prompt(hub: Hub):
    judge = load_rewarder("openai:r-prm-7b@http://localhost:8000/v1")
    assert judge.template == released_template(R_PRM)
    assert judge.engine.model == "r-prm-7b"


def test_training_rows_have_the_instruction_alone(hub: Hub):
    template = training_template(R_PRM)
    assert template.chat
    prompt = template.render("P?", ["s"], 0)
    assert prompt.messages == WORDING.render("P?", ["s"], 0).messages


def test_a_record_can_ask_for_the_chat_rendering(hub: Hub):
    assert R_PRM.prompt is not None
    as_chat = dataclasses.replace(R_PRM, prompt=dataclasses.replace(R_PRM.prompt, ending=None))
    template = released_template(as_chat)
    assert (template.chat, template.system) == (True, SYSTEM)
    assert template.user == training_template(R_PRM).user


def test_offline_without_the_prompt_the_error_says_how(hub: Hub):
    hub.online = False
    with pytest.raises(PromptError) as caught:
        RPRM("r-prm-7b")
    message = str(caught.value)
    assert "no route to the hub" in message
    for way in ("rprm prompts import --model r-prm-7b", "rprm prompts import FILE --model r-prm-7b", "--prompt FILE"):
        assert way in message
    assert "\n" not in message
    # A prompt that is given needs none of it.
    assert load_rewarder("r-prm-7b", prompt="critique").template.name == "critique"


def test_without_the_hub_extra_the_error_names_it(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match=r'pip install "\.\[hub\]"'):
        released_template(R_PRM)


def test_a_damaged_cache_is_named(hub: Hub):
    released_template(R_PRM)
    assert R_PRM.prompt is not None
    R_PRM.prompt.cached.write_text("user = 'torn")
    named = re.escape(str(R_PRM.prompt.cached))
    with pytest.raises(PromptError, match=f"{named}: .* delete the file, or .*rprm prompts import --model r-prm-7b"):
        released_template(R_PRM)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RPRM_CACHE", str(tmp_path / "file"))
    with pytest.raises(PromptError, match="RPRM_CACHE names another folder"):
        released_template(R_PRM)


@pytest.mark.parametrize(
    ("platform", "variables", "wanted"),
    [
        ("linux", {}, "~/.cache/rprm"),
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/rprm"),
        ("darwin", {"XDG_CACHE_HOME": "/c"}, "~/Library/Caches/rprm"),
        ("win32", {"LOCALAPPDATA": "/users/a/AppData/Local"}, "/users/a/AppData/Local/rprm/Cache"),
        ("win32", {}, "~/AppData/Local/rprm/Cache"),
        ("win32", {"RPRM_CACHE": "~/mine"}, "~/mine"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], wanted: str
):
    for name in ("RPRM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(wanted).expanduser()


def test_a_prompt_in_the_models_folder_wins(tmp_path: Path, hub: Hub):
    (tmp_path / "rprm_prompt.toml").write_text(load_template("critique-brief").to_toml())
    spec = f"vllm:kevinpro/R-PRM-7B-DPO?adapter={tmp_path}"
    assert template_for(spec).digest == load_template("critique-brief").digest
    assert hub.num_reads == 0


@pytest.mark.parametrize("spec", ["transformers:someone/model?dtype=float32", "openai:gpt-4o@http://localhost/v1"])
def test_an_unknown_model_is_told_of_once(caplog: pytest.LogCaptureFixture, spec: str):
    with caplog.at_level(logging.WARNING, "rprm"):
        for _ in range(2):
            assert template_for(spec).name == "critique"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert spec in record.getMessage()
    assert "'critique'" in record.getMessage()


def test_a_model_with_a_prompt_or_a_folder_is_not_told_of(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    with caplog.at_level(logging.WARNING, "rprm"):
        for spec in (f"transformers:{tmp_path}", "scripted:", "embedded"):
            template_for(spec)
        for spec in ("transformers:someone/model", "openai:gpt-4o@http://localhost/v1"):
            RPRM(spec, prompt="critique")
    assert not caplog.records


def test_real_solutions_in_the_published_shape(real_data: Path, tmp_path: Path):
    """The importer finds the layout with real problems and steps in it, as R-PRM's rows have them."""
    items = [
        json.loads(line)
        for file in sorted((real_data / "processbench").glob("*.jsonl"))
        for line in file.read_text().split("\n")
        if line
    ]
    draw = random.Random(0)
    file = tmp_path / "rows.jsonl"
    with file.open("w") as stream:
        for _ in range(600):
            item = draw.choice(items)
            text = WORDING.render(item["problem"], item["steps"], draw.randrange(len(item["steps"]))).text
            stream.write(json.dumps({"instruction": text, "output": "Is the step correct (Yes/No)? Yes"}) + "\n")
    imported = import_template(str(file), name="t")
    assert (imported.num_exact, imported.num_rows) == (600, 600)
    assert imported.template.user == WORDING.user
    assert imported.template.no_previous_steps == WORDING.no_previous_steps


# --- reading the data set -------------------------------------------------------------------------------------------


def test_data_dir_picks_the_rows_of_one_kind(hub: Hub):
    for part in ("sft", "dpo"):
        imported = import_template(f"kevinpro/R-PRM?data_dir={part}", name="t", marker="m")
        assert (imported.num_rows, imported.num_exact) == (120, 120)
        assert imported.template.user == WORDING.user
        assert imported.source == f"kevinpro/R-PRM@{hub.revision}"


def test_a_parquet_file_is_a_source(published: Path, tmp_path: Path):
    imported = import_template(str(published / "sft" / "train" / "00001.parquet"), name="t")
    assert (imported.num_rows, imported.num_exact) == (60, 60)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"torn\.parquet: cannot be read"):
        import_template(str(tmp_path / "torn.parquet"), name="t")


# --- token ids ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen_tokenizer() -> Any:
    return released_tokenizers.qwen()


def test_token_ids_are_those_of_a_rendering_by_hand(qwen_tokenizer: Any, hub: Hub):
    """Special tokens, system message and ending as ids; the instruction as one run of text."""
    from rprm.engines.tokens import encode_prompt

    im_start, im_end = 151644, 151645
    system, line_end, user, assistant = 8948, 198, 872, 77091
    helpful = [2610, 525, 264, 10950, 17847, 13]  # You are a helpful assistant.
    backslash_n = 1699
    template = released_template(R_PRM)
    problem, steps = "Find $\\frac{1}{2}$ of 数学 12.", ["Half of 12 is 6.", "So {{x}} = 7.  "]
    for index in range(2):
        instruction = WORDING.render(problem, steps, index).messages[-1].content
        text = qwen_tokenizer.encode(f"user\n{instruction}", add_special_tokens=False)
        assert text[:2] == [user, line_end]
        assert encode_prompt(qwen_tokenizer, template.render(problem, steps, index)) == [
            im_start, system, line_end, *helpful, im_end, line_end,
            im_start, *text, im_end, backslash_n,
            im_start, assistant, backslash_n,
        ]  # fmt: skip


# --- the command line -----------------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("models").splitlines()
    for known, line in zip(MODELS, lines[1:], strict=False):
        assert line.split()[:3] == [known.alias, known.hub_id, known.kind]
    assert max(map(len, lines)) <= 80


def test_a_model_says_what_it_needs(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    machine(monkeypatch, vllm=False, gpu=False)
    shown = run("models", "r-prm-7b")
    # 7.6 billion weights of two bytes are 15.2 GB; a fifth more are 18.24 GB.
    for fact in (
        "15.2",
        "18.2",
        "estimate",
        "4096",
        "read from the hub at the first use",
        SYSTEM,
    ):
        assert fact in shown
    released_template(R_PRM)
    assert re.search(r"kevinpro--R-PRM.toml\s.*at hand\s+True", run("models", "kevinpro/R-PRM-7B-DPO"), re.DOTALL)
    described = json.loads(run("models", "r-prm-7b", "--json"))
    assert described["prompt"]["at_hand"] is True
    assert described["spec"] == "transformers:kevinpro/R-PRM-7B-DPO"
    assert described["commands"][-1].endswith('"r-prm-7b?context_length=8192"')
    machine(monkeypatch, vllm=True, gpu=True)
    assert json.loads(run("models", "r-prm-7b", "--json"))["commands"][-1] == (
        'VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 rprm judge solutions.jsonl --model "r-prm-7b?context_length=8192"'
    )
    assert [known["alias"] for known in json.loads(run("models", "--json"))] == [known.alias for known in MODELS]


def test_every_command_that_is_printed_parses(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """Its options are those of the command, and its model loads (no weights are read)."""
    from typer.main import get_command

    released_template(R_PRM)
    for known in MODELS:
        for line in json.loads(run("models", known.alias, "--json"))["commands"]:
            words = [word for word in shlex.split(line) if "=" not in word.partition("?")[0]]
            assert words[0] == "rprm"
            command: Any = get_command(app)
            rest = words[1:]
            while hasattr(command, "commands"):
                command = command.get_command(None, rest.pop(0))
            load_rewarder(command.make_context("rprm", rest).params["model"])


def test_an_unknown_name_lists_the_known_ones():
    from rprm.errors import RprmError

    with pytest.raises(RprmError, match=r"'r-prm' is not a known model; known are r-prm-7b, qwen-prm-7b"):
        run("models", "r-prm")


def test_prompts_import_fills_the_cache(hub: Hub, published: Path, tmp_path: Path):
    shown = run("prompts", "import", "--model", "r-prm-7b")
    assert "120 of 120 rows (120 problems) rendered exactly" in shown
    hub.online = False
    assert released_template(R_PRM).name == f"kevinpro/R-PRM@{hub.revision}"
    # A file of its rows, for a machine that never has a network; it does not replace what is there unasked.
    command = ("prompts", "import", published / "sft" / "train" / "00000.parquet", "--model", "r-prm-7b")
    with pytest.raises(PromptError, match=r"kevinpro--R-PRM\.toml: exists already; give --force"):
        run(*command)
    assert released_template(R_PRM).name == f"kevinpro/R-PRM@{hub.revision}"
    run(*command, "--force")
    assert released_template(R_PRM).name == "kevinpro/R-PRM from 00000.parquet"


def test_a_data_set_that_cannot_be_read_is_named_as_it_was_given(hub: Hub):
    hub.online = False
    with pytest.raises(InputError, match=r"^kevinpro/R-PRM\?data_dir=dpo: no such file"):
        run("prompts", "import", "kevinpro/R-PRM?data_dir=dpo", "--output", "theirs.toml")


def test_prompts_import_writes_the_released_prompt_as_a_file(hub: Hub, tmp_path: Path):
    file = tmp_path / "r-prm.toml"
    run("prompts", "import", "--model", "r-prm-7b", "--output", file)
    assert not cache_folder().exists()
    hub.online = False
    written = load_template(file)
    assert written.user.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nYou")
    assert load_rewarder("r-prm-7b", prompt=str(file)).template == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the rows to import from and the --output to write, or a known model"),
        (["rows.jsonl"], "--output"),
        (["--output", "a.toml"], "name the rows"),
        (["--model", "qwen-prm-7b"], "not a known model with a prompt"),
        (["--model", "someone/else"], "not a known model with a prompt"),
        (["--model", "r-prm-7b", "--output", "a.txt"], "ends in .toml"),
    ],
)
def test_mistakes_of_an_import(arguments: list[str], message: str):
    with pytest.raises(PromptError, match=re.escape(message)):
        run("prompts", "import", *arguments)


def test_nothing_heavy_is_loaded_to_list_models():
    import subprocess

    code = (
        "import sys; from rprm.models import resolve; from rprm.cli.models import described; from rprm.models import "
        "MODELS; [described(known) for known in MODELS]; "
        "print(sorted({'torch', 'transformers', 'datasets', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
