"""A stand-in of R-PRM-7B-DPO: its context of 4,096 tokens, its tokenizer, and a prompt as long as its own.

The published settings ask for up to 4,096 new tokens beside any prompt: the context decides how many there are.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import released_tokenizers
from typer.testing import CliRunner

from rprm import RPRM, Solution, load_template
from rprm.benchmarks import read_processbench
from rprm.benchmarks.items import loaded
from rprm.cli.app import app
from rprm.engines.base import MIN_ROOM, clipped
from rprm.engines.tokens import encode_prompt
from rprm.errors import RunError
from rprm.models import MODELS

R_PRM = next(known for known in MODELS if known.alias == "r-prm-7b")
LINE = "Is the step correct (Yes/No)? Yes"
#: P(Yes) of every analysis.
P_YES = 0.75


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the verdict line and ends, whatever it reads: the next token depends on the last one alone.

    The config is the published one but for its sizes. Layers add nothing; token i of the line has the unit vector i as
    its embedding, and its successor's output row reads it.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = released_tokenizers.qwen(eos_token="<|im_end|>")
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=151643,
        eos_token_id=151645,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    line = tokenizer.encode(LINE)
    (no,) = tokenizer.encode(" No")
    (backslash_n,) = tokenizer.encode("\\n")
    assert len({*line, no, backslash_n}) == len(line) + 2 <= config.hidden_size
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        # A norm of one vector's root mean square makes of a unit vector one of length sqrt(32).
        certain = 60.0 / math.sqrt(config.hidden_size)
        chain = [backslash_n, *line, config.eos_token_id]
        for place, (token, successor) in enumerate(pairwise(chain)):
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[successor, place] = certain
        # ` No` is less likely than ` Yes` by P(Yes) / P(No), and ends alike.
        place = len(line) - 1
        odds = math.log(P_YES / (1 - P_YES))
        model.lm_head.weight[no, place] = certain - odds / math.sqrt(config.hidden_size)
        model.model.embed_tokens.weight[no, len(line)] = 1.0
    folder = tmp_path_factory.mktemp("r-prm") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert R_PRM.prompt is not None
    # Some 230 tokens of fixed text, as many as the released prompt has beside a short problem, then the record's.
    template = replace(load_template("critique"), name="stand-in")
    (folder / "rprm_prompt.toml").write_text(R_PRM.prompt.around(template).to_toml(), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_rewards_are_those_of_the_checkpoint(stand_in: Path) -> None:
    with RPRM(f"transformers:{stand_in}?dtype=float32") as prm:
        assert (prm.rewarder.threshold, prm.rewarder.rule.num_analyses) == (0.5, 10)  # type: ignore[union-attr]
        (reward,) = prm.score([{"problem": "1 + 1 = ?", "steps": ["It is 2.", "The answer is 2."]}])
    assert reward.rewards == pytest.approx([P_YES] * 2, abs=1e-4)
    assert {analysis.text.removesuffix(" Yes").removesuffix(" No") for analysis in reward.steps[0].analyses} == {
        "Is the step correct (Yes/No)?"
    }


def hardest(real_data: Path, count: int) -> list[Solution]:
    """Of each subset, the items with the most text."""
    items = read_processbench(str(real_data / "processbench")).items
    ranked = sorted(items, key=lambda item: -len(item.solution.problem) - sum(map(len, item.solution.steps)))
    subsets: dict[str, list[Solution]] = {}
    for item in ranked:
        subsets.setdefault(item.subset, []).append(loaded(item))
    return [solution for solutions in subsets.values() for solution in solutions[:count]]


@pytest.mark.slow
def test_every_prompt_of_processbench_leaves_room(stand_in: Path, real_data: Path) -> None:
    """No step of the items at hand is refused: an analysis of at least 64 tokens fits beside each prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stand_in)
    template = load_template(stand_in)
    items = read_processbench(str(real_data / "processbench")).items
    # The longest prompt of an item is that of its last step.
    lengths = [
        len(encode_prompt(tokenizer, template.render(item.solution.problem, steps, len(steps) - 1)))
        for item in items
        if (steps := item.solution.steps)
    ]
    assert len(lengths) == {"excerpts": 80, "data": 660}[real_data.name]
    rooms = [clipped(length, 4096, R_PRM.context_length or 0) for length in lengths]
    assert MIN_ROOM <= min(rooms) < 4096 - 1000
    # The published settings alone would have asked for more than there is, everywhere.
    assert max(rooms) < 4096


@pytest.mark.long
@pytest.mark.slow
def test_the_longest_items_of_processbench_are_judged_by_the_defaults(
    stand_in: Path, real_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "longest.jsonl"
    path.write_text("".join(f"{solution.model_dump_json()}\n" for solution in hardest(real_data, 2)), encoding="utf-8")
    done = CliRunner().invoke(app, ["judge", str(path), "--model", f"transformers:{stand_in}", "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert row["first_error"] is not None
        assert all(step["reward"] is not None for step in row["steps"])


@pytest.mark.slow
def test_a_context_too_small_for_any_prompt_fails_and_says_so(stand_in: Path, excerpts: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(hardest(excerpts, 1)[0].model_dump_json() + "\n", encoding="utf-8")
    arguments: list[Any] = ["judge", str(path), "--model", f"transformers:{stand_in}?context_length=300", "--json"]
    with pytest.raises(RunError, match=r"no step of any solution could be judged.*context") as raised:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "300" in str(raised.value)
