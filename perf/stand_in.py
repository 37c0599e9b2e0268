"""What judging with a released 7B model costs on a GPU: a stand-in of its size, timed through the real engine.

`make` writes a checkpoint with the config, tensor names and shapes of R-PRM-7B-DPO (Qwen2.5-Math-7B) and random weights
that make its next token depend on the last one alone: it writes an analysis of 150 tokens and a geometric number more
(400 in the middle of many), then the verdict line, and ends. P(Yes) is 0.9 for every step; one analysis in fifty ends
without a verdict. The layers compute what a real model's compute, and add next to nothing; only time can be measured.
`time` judges real ProcessBench solutions with it, by the lean and by the published procedure, on one engine in one
process.

Every step is called right, so that judging never ends at a first error: the case in which the lean way saves least.

    python perf/stand_in.py make FOLDER --tokenizer FOLDER_WITH_QWENS
    python perf/stand_in.py time --model vllm:FOLDER --data FOLDER_WITH_PROCESSBENCH -k 4 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from judge_cost import forget_prompts

from rprm.benchmarks import read_processbench
from rprm.data.stage_options import order_key
from rprm.engines import load_engine
from rprm.jobs import in_order
from rprm.presets import Procedure
from rprm.prompts import load_template
from rprm.rewarders import load_judge

P_YES = 0.9
SHORTEST = 150
MORE = 250
LOST = 0.02
#: Logit of a certain successor; that of a token which is none is about 0, and there are 152,064 of them.
CERTAIN = 40.0


def make(arguments: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    (end_of_turn,) = tokenizer.encode("<|im_end|>")
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=151643,
        eos_token_id=end_of_turn,
        dtype="bfloat16",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
        # A direction of its own for every token: two of them have a cosine of about 1 / sqrt(hidden).
        embedding = torch.randn(config.vocab_size, config.hidden_size)
        head = torch.zeros(config.vocab_size, config.hidden_size)
        late = torch.randn(config.hidden_size)

    marker = load_template(arguments.prompt).verdict.marker
    line = tokenizer.encode(f"{marker} Yes")
    (no,) = tokenizer.encode(" No")
    (newline,) = tokenizer.encode("\n")
    (paragraph,) = tokenizer.encode("\n\n")
    fixed = {*line, no, newline, paragraph, end_of_turn}
    assert len(fixed) == len(line) + 4, "a token of the verdict line has two successors"
    ordinary = (token for token in range(1000, 60_000) if token not in fixed)
    words = [token for token in ordinary if re.fullmatch(" [a-z]{3,}", tokenizer.decode([token]))]
    words = words[: SHORTEST + 8 * MORE]

    def follows(successor: int, direction: Any, share: float = 1.0) -> None:
        head[successor] += (CERTAIN + math.log(share)) / config.hidden_size * direction

    # Words after the shortest analysis share a direction, which says that the analysis may end here.
    embedding[words[SHORTEST:]] = (embedding[words[SHORTEST:]] + late) / math.sqrt(2)
    half = 1 / math.sqrt(2)
    for word, successor in pairwise([newline, *words[:SHORTEST]]):
        follows(successor, embedding[word])
    # A late word's own part weighs half as much, and so does the shared one: all of the logit comes from each.
    for word, successor in pairwise(words[SHORTEST - 1 :]):
        own = embedding[word] if word == words[SHORTEST - 1] else embedding[word] - half * late
        follows(successor, own * (1 if word == words[SHORTEST - 1] else 2), 1 - 1 / MORE)
    follows(paragraph, late * math.sqrt(2), (1 - LOST) / MORE)
    follows(end_of_turn, late * math.sqrt(2), LOST / MORE)
    for token, successor in pairwise([paragraph, *line[:-1]]):
        follows(successor, embedding[token])
    follows(line[-1], embedding[line[-2]], P_YES)
    follows(no, embedding[line[-2]], 1 - P_YES)
    for answer in (line[-1], no):
        follows(end_of_turn, embedding[answer])
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
    model.generation_config.eos_token_id = end_of_turn
    model.save_pretrained(arguments.folder, max_shard_size="4GB")
    tokenizer.save_pretrained(arguments.folder)


async def judge(arguments: argparse.Namespace) -> None:
    solutions = read_processbench(Path(arguments.data)).solutions
    solutions = sorted(solutions, key=lambda solution: order_key(solution.id, 0))[: arguments.limit]
    engine = load_engine(arguments.model)
    started = time.perf_counter()
    await engine.start()
    print(json.dumps({"engine": arguments.model, "loaded_in": round(time.perf_counter() - started, 1)}), flush=True)
    runs: list[tuple[Procedure, int]] = [(p, k) for k in arguments.k for p in ("lean", "published")]  # type: ignore[misc]
    # The first run pays for the kernels that are compiled at first use: it is run once more.
    for procedure, k in [runs[0], *runs]:
        judge = load_judge(engine, procedure=procedure, num_analyses=k, prompt=arguments.prompt, stopping=None)
        forget_prompts(engine)
        if llm := getattr(getattr(engine, "_model", None), "llm", None):
            await llm.reset_prefix_cache()
        started = time.perf_counter()
        rewards = [reward async for _, reward in in_order(iter(solutions), judge.judge, width=judge.concurrency)]
        seconds = time.perf_counter() - started
        steps = [step for reward in rewards for step in reward.steps]
        analyses = [analysis for step in steps for analysis in step.analyses]
        num_tokens = sum(analysis.num_tokens for analysis in analyses)
        row = {
            "procedure": procedure,
            "k": k,
            "seconds_a_solution": round(seconds / len(solutions), 3),
            "seconds": round(seconds, 1),
            "solutions": len(solutions),
            "steps": len(steps),
            "unscored": sum(step.reward is None for step in steps),
            "analyses": len(analyses),
            "no_verdict": sum(analysis.verdict is None for analysis in analyses),
            "tokens": num_tokens,
            "tokens_a_second": round(num_tokens / seconds),
            "prompt_tokens": sum(analysis.num_prompt_tokens or 0 for analysis in analyses) // max(len(analyses), 1),
            "mean_reward": round(sum(step.reward or 0.0 for step in steps) / max(len(steps), 1), 4),
            "wrong": sum(reward.first_error not in (-1, None) for reward in rewards),
        }
        print(json.dumps(row), flush=True)
    await engine.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="critique")
    commands = parser.add_subparsers(dest="what", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder")
    making.add_argument("--tokenizer", required=True, help="folder with Qwen2.5's tokenizer")
    making.add_argument("--hidden", type=int, default=3584)
    making.add_argument("--intermediate", type=int, default=18944)
    making.add_argument("--layers", type=int, default=28)
    making.add_argument("--heads", type=int, default=28)
    timing = commands.add_parser("time")
    timing.add_argument("--model", required=True)
    timing.add_argument("--data", required=True, help="folder with ProcessBench's files")
    timing.add_argument("-k", type=int, nargs="+", default=[4, 10])
    timing.add_argument("--limit", type=int, default=32, help="solutions, a mixture of all subsets")
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments)
    else:
        asyncio.run(judge(arguments))


if __name__ == "__main__":
    main()
