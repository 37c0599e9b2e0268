"""The teacher as an engine: `lab:WORLD?split=train&reading=0.1`. It writes analyses of a world's labelled steps."""

from __future__ import annotations

from pathlib import Path

from rprm.engines import Completion, EngineInfo, Sampling, fingerprint
from rprm.errors import EngineError, RequestRefused, Unsupported
from rprm.prompts import Prompt, load_template
from rprm.runs import read_json_lines
from rprm.verdict import VerdictChoice, VerdictFormat
from rprm_lab.teacher import Faults, analyse, verdict_line
from rprm_lab.world import CARD, JUDGE_PROMPT, Truth


class TeacherEngine:
    """A program that stands in for a strong model as a teacher: it knows the truth, and errs at set rates.

    Args:
        world: the folder of `rprm lab world`.
        split: whose labelled steps it is asked about.
        reading, slip, verdict, systematic: how fallible it is; see `rprm_lab.teacher.Faults`.

    Raises:
        EngineError: a rate is none, or the folder holds no world.
    """

    def __init__(
        self,
        world: str,
        *,
        spec: str = "",
        split: str = "train",
        reading: float = 0.12,
        slip: float = 0.12,
        verdict: float = 0.03,
        systematic: float = 0.5,
        concurrency: int = 64,
    ) -> None:
        self.spec = spec or f"lab:{world}"
        self.world = Path(world)
        self.split = split
        self.concurrency = concurrency
        rates = {"reading": reading, "slip": slip, "verdict": verdict, "systematic": systematic}
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise EngineError(f"{self.spec}: {name}={rate} is no rate; give a number from 0 to 1")
        self.faults = Faults(**rates)
        self._steps: dict[str, Truth] = {}
        self._verdict = VerdictFormat()

    async def start(self, *, chat: bool = True) -> EngineInfo:
        truths = self.world / self.split / "truth.jsonl"
        if not (self.world / CARD).is_file() or not truths.is_file():
            raise EngineError(
                f"{self.spec}: no world with a split {self.split!r} there; make one with `rprm lab world`"
            )
        if not self._steps:
            template = load_template(self.world / JUDGE_PROMPT)
            self._verdict = template.verdict
            for row in read_json_lines(truths):
                truth = Truth.model_validate(row)
                prompt = template.render(truth.problem, truth.steps, len(truth.steps) - 1)
                self._steps[prompt.text] = truth
        faults = self.faults
        return EngineInfo(
            kind="lab",
            model=str(self.world),
            revision=fingerprint(self.world / CARD),
            has_logprobs=False,
            has_second_pass=False,
            continues_replies=False,
            details={
                "split": self.split,
                "reading": faults.reading,
                "slip": faults.slip,
                "verdict": faults.verdict,
                "systematic": faults.systematic,
            },
        )

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        truth = self._steps.get(prompt.text)
        if truth is None:
            raise RequestRefused(
                f"the teacher knows the labelled steps of {self.world}, split {self.split}, in the template of its "
                f"{JUDGE_PROMPT} alone"
            )
        written = analyse(
            truth.checks, len(truth.steps) - 1, self.faults, step=truth.id, seed=sampling.seed or 0
        )  # fmt: skip
        text = f"{written.text}\n{verdict_line(written.verdict, sampling.verdict or self._verdict)}"
        return Completion(text, len(text.split()), "stop", len(prompt.text.split()), ended=True)

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        raise Unsupported(f"{self.spec}: a program has no second pass")

    async def aclose(self) -> None:
        self._steps.clear()
