"""The lab's experiments as commands of `rprm`: what each runs, into which folder, after what.

    LAB/
      world                            shared by all seeds, and base and policy, where they are trained from scratch
      validation                       labelled steps for the classifiers of all seeds
      seed-S/size-N/                   steps; analyses, cold-start, sft, judged; classifier, classifier-judged
      seed-S/rounds, judged-R          preference rounds from the cold start of the largest size; `-once` with K = 1
      seed-S/scaling                   that cold start judging with the largest K, every step
      seed-S/teacher-K                 the teacher judging the same solutions
      seed-S/types/, ood/              step by step, by type of error; out of distribution
      seed-S/guidance/                 the policy's candidates; Best-of-N and guided search by each PRM
      seed-S/critic/                   critiques, cold-start, sft from the labels of the largest size; judged-K

No two seeds share a labelled step. Everything a figure is made of lies in these folders, and each can be made again by
hand: the first line of its log is its command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rprm.errors import InputError
from rprm.subcommands import is_complete
from rprm_lab import BASE, POLICY
from rprm_lab.critiques import CRITIC_PROMPT, CRITIQUES, TRAINING_PROMPT
from rprm_lab.world import CARD, JUDGE_PROMPT, STEPS

Experiment = Literal["data", "rounds", "scaling", "teacher", "types", "guidance", "ood", "critic"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)

Options = tuple[str, ...]

_SEED = "seed-"
#: Longest analysis, solution of the policy, and critique, in tokens: about twice what the world's own have.
_ANALYSIS_TOKENS, _SOLUTION_TOKENS, _CRITIQUE_TOKENS = 320, 320, 1200
#: K of critic and judge side by side, as far as the scaling experiment goes.
_VOTES = (1, 4, 8)
#: Critiques sampled for each analysis (one must be right about every step, and is more seldom); as many are kept.
_CRITIQUES_PER_ANALYSIS = 2


def _batches_of(rows: int) -> Options:
    """Options of a training that are alike in all, but for the rows of a step."""
    count = str(rows)
    return ("--batch-size", count, "--device-batch-size", count, "--precision", "auto", "--warmup-ratio", "0.1")


#: The last checkpoint, as in the archived runs.
_SAVING = ("--eval-steps", "100", "--save-steps", "100", "--keep-last")


@dataclass(frozen=True)
class LabSettings:
    """What every experiment depends on. The defaults are for a laptop and a working day.

    Attributes:
        num_seeds: repetitions, each with labelled steps of its own.
        from_scratch: train base and policy, by the options `base` and `policy`, instead of taking the lab's own.
        world_steps, world_solutions: size of the world: labelled steps for all seeds, solutions to measure on.
        sizes: labelled steps to train on, ascending; `sft_steps`, optimizer steps of the cold start from each.
        teacher: its rates, as options of its engine; `num_teacher_analyses` of each step.
        num_validation: labelled steps besides, for the classifier alone: it is validated on them at every size.
        num_judged: solutions of a split to measure on, at most.
        num_analyses: K of the judge.
        scaling_analyses: largest K of the scaling experiment, a power of two, on `num_scaled` solutions.
        num_rounds: preference rounds; each samples `round_analyses` analyses of `round_steps` labelled steps, and
            makes at most `round_pairs` pairs of a step, with analyses sampled `round_repeats` times or more as chosen;
            `round_balance` thins them out to as many of right as of wrong steps.
        num_guided: problems for the policy, `num_candidates` solutions or next steps each time, and K while guiding.
        max_rows: rows that an engine decodes at once; no result depends on it.
        base, policy, sft, dpo, classifier: options of these trainings.
    """

    num_seeds: int = 3
    from_scratch: bool = False
    world_steps: int = 40_000
    world_solutions: int = 500
    sizes: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    sft_steps: tuple[int, ...] = (250, 250, 250, 400, 600)
    teacher: str = "reading=0.35&slip=0.35&verdict=0.1&systematic=0.5"
    num_teacher_analyses: int = 3
    num_validation: int = 500
    num_judged: int = 200
    num_analyses: int = 10
    scaling_analyses: int = 32
    num_scaled: int = 50
    num_rounds: int = 3
    round_steps: int = 2000
    round_analyses: int = 8
    round_pairs: int = 4
    round_repeats: int = 2
    round_balance: bool = False
    num_guided: int = 100
    num_candidates: int = 8
    guidance_analyses: int = 4
    max_rows: int = 64
    base: Options = ()
    policy: Options = ("--hidden-size", "128", "--layers", "3", "--max-steps", "4000", "--seed", "1")
    sft: Options = ("--learning-rate", "1e-3", *_batches_of(16), *_SAVING)
    dpo: Options = ("--learning-rate", "1e-4", "--sft-weight", "10", "--epochs", "1", *_batches_of(8), *_SAVING)
    classifier: Options = (
        "--learning-rate", "3e-4", "--max-steps", "600", *_batches_of(16), "--eval-steps", "25", "--save-steps", "25",
        "--patience", "8",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if list(self.sizes) != sorted(set(self.sizes)) or not self.sizes or self.sizes[0] < 2:
            raise InputError(f"sizes {self.sizes} must ascend, from 2 on")
        if len(self.sft_steps) != len(self.sizes):
            raise InputError(f"sft_steps {self.sft_steps} must be as many as sizes, {len(self.sizes)}")
        if self.num_seeds * self.sizes[-1] + self.num_validation > self.world_steps:
            raise InputError(
                f"{self.num_seeds} seeds of {self.sizes[-1]} labelled steps each, and {self.num_validation} to "
                f"validate on, need a world of more than {self.world_steps} steps"
            )
        if self.scaling_analyses.bit_count() != 1:
            raise InputError(f"scaling_analyses is {self.scaling_analyses}; it must be a power of two")

    @property
    def votes(self) -> list[int]:
        """K of critic and judge side by side."""
        return [count for count in _VOTES if count <= self.scaling_analyses]

    def as_dict(self) -> dict[str, Any]:
        """What the results of a seed depend on."""
        named = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        del named["num_seeds"], named["max_rows"]
        return named


#: One seed of less of everything: wider intervals, sooner.
SMALL = LabSettings(
    num_seeds=1,
    sizes=(250, 500, 2000),
    sft_steps=(250, 250, 400),
    num_judged=100,
    num_scaled=25,
    num_rounds=1,
    round_steps=1000,
    num_guided=40,
)
_ONCE = ("--max-steps", "2")
#: Everything once, and hardly anything learnt: minutes.
TINY = LabSettings(
    num_seeds=1,
    world_steps=60,
    num_validation=20,
    world_solutions=6,
    sizes=(20, 40),
    sft_steps=(70, 70),
    num_judged=6,
    num_analyses=2,
    scaling_analyses=2,
    num_scaled=2,
    num_rounds=1,
    round_steps=40,
    round_analyses=4,
    round_repeats=1,
    num_guided=2,
    num_candidates=2,
    guidance_analyses=1,
    base=("--max-steps", "10", "--hidden-size", "64", "--layers", "2"),
    policy=("--max-steps", "10", "--hidden-size", "64", "--layers", "2", "--seed", "1"),
    sft=("--learning-rate", "2e-3", "--batch-size", "8", "--device-batch-size", "8", "--warmup-ratio", "0.1", *_SAVING),
    dpo=(*_ONCE, *_batches_of(16), *_SAVING),
    classifier=(*_ONCE, *_batches_of(16), *_SAVING),
)
SIZES = {"laptop": LabSettings(), "small": SMALL, "tiny": TINY}


@dataclass(frozen=True)
class Task:
    """A stage of the lab.

    Attributes:
        folder: relative to the lab's.
        arguments: of `rprm`, without --output.
        needs: folders of the tasks that come first.
        wide: whether it is to have the threads of all cores.
        product: the file that is there when it is done; by default its manifest tells.
    """

    folder: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    wide: bool = False
    product: str | None = None

    @property
    def seed(self) -> int:
        """The seed it belongs to; 0 where it serves all."""
        first = self.folder.partition("/")[0]
        return int(first.removeprefix(_SEED)) if first.startswith(_SEED) else 0

    def is_done(self, lab: Path) -> bool:
        folder = lab / self.folder
        return (folder / self.product).is_file() if self.product else is_complete(folder)


@dataclass(frozen=True)
class Model:
    """A model folder, and the tasks that make it."""

    path: str
    needs: tuple[str, ...] = ()
    is_classifier: bool = False


@dataclass
class Plan:
    """Tasks by folder; what a task needs stands before it."""

    lab: Path
    settings: LabSettings
    tasks: dict[str, Task] = field(default_factory=dict)

    def path(self, *parts: str) -> str:
        return str(self.lab.joinpath(*parts))

    def add(
        self,
        folder: str,
        *arguments: str,
        needs: Sequence[str] = (),
        wide: bool = False,
        product: str | None = None,
    ) -> str:
        """Add a task, unless it is there; returns its folder."""
        self.tasks.setdefault(folder, Task(folder, arguments, tuple(needs), wide, product))
        return folder


def make_plan(lab: Path, settings: LabSettings, experiments: Sequence[Experiment] = EXPERIMENTS) -> Plan:
    """All that some experiments run, for every seed, and nothing else."""
    plan = Plan(lab, settings)
    plan.add(
        "world", "lab", "world", "--steps", str(settings.world_steps), "--test", str(settings.world_solutions),
        product=CARD,
    )  # fmt: skip
    for seed in range(settings.num_seeds):
        made = _Seed(plan, seed)
        for experiment in experiments:
            made.add(experiment)
    return plan


def judged_with(size: int, num_analyses: int) -> str:
    """Where, in a seed's folder, the cold start of a size judges with one analysis (as in the rounds) or with more."""
    return f"size-{size}/judged-{'once' if num_analyses == 1 else num_analyses}"


class _Seed:
    """The tasks of one seed. Methods add a task, after what it needs, and return its folder."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.seed = seed
        self.folder = f"{_SEED}{seed}"
        self.seeded = ("--seed", str(seed))
        self.largest = plan.settings.sizes[-1]
        self.prompt = ("--prompt", plan.path("world", JUDGE_PROMPT))

    def add(self, experiment: Experiment) -> None:
        match experiment:
            case "data":
                for size in self.settings.sizes:
                    self.judged(f"{self.folder}/size-{size}/judged", self.student(size))
                    self.judged(f"{self.folder}/size-{size}/classifier-judged", self.baseline_classifier(size))
            case "rounds":
                models = {f"size-{self.largest}/judged": self.student(self.largest)}
                for number in range(1, self.settings.num_rounds + 1):
                    models[f"judged-{number}"] = self.of_round(number)
                for name, model in models.items():
                    self.judged(f"{self.folder}/{name}", model)
                    self.judged(f"{self.folder}/{name}-once", model, num_analyses=1)
            case "scaling":
                self.scaling()
            case "teacher":
                self.judged(f"{self.folder}/size-{self.largest}/judged", self.student(self.largest))
                self.teacher()
            case "types":
                self.judged_steps("rprm", self.best())
                self.judged_steps("classifier", self.baseline_classifier(self.largest))
            case "guidance":
                self.guidance()
            case "ood":
                self.judged(f"{self.folder}/ood/rprm", self.best(), split="ood")
                self.judged(f"{self.folder}/ood/classifier", self.baseline_classifier(self.largest), split="ood")
            case "critic":
                self.critic()

    def base(self) -> Model:
        """What judges are trained from."""
        return self.pretrained("base", BASE, self.settings.base)

    def policy(self) -> Model:
        """What writes the solutions."""
        return self.pretrained("policy", POLICY, self.settings.policy)

    def pretrained(self, name: str, own: Path, options: Options) -> Model:
        if not self.settings.from_scratch:
            return Model(str(own))
        task = self.plan.add(name, "lab", "base", self.plan.path("world"), *options, needs=["world"], wide=True)
        return Model(self.plan.path(task, "model"), (task,))

    def steps(self, size: int) -> str:
        """The first `size` labelled steps of this seed."""
        return self.plan.add(
            f"{self.folder}/size-{size}/steps", "lab", "steps", self.plan.path("world"),
            "--skip", str(self.seed * self.largest), "--count", str(size), needs=["world"], product=STEPS,
        )  # fmt: skip

    def student(self, size: int) -> Model:
        """The cold start from the first `size` steps."""
        plan, settings, folder = self.plan, self.settings, f"{self.folder}/size-{size}"
        steps = self.steps(size)
        analyses = plan.add(
            f"{folder}/analyses", "data", "analyses", plan.path(steps, STEPS), "--model", self.teacher_spec("train"),
            "-n", str(settings.num_teacher_analyses), *self.prompt, *self.seeded, needs=[steps],
        )  # fmt: skip
        kept = plan.add(
            f"{folder}/cold-start", "data", "cold-start", plan.path(analyses),
            "--per-step", str(settings.num_teacher_analyses), *self.prompt, needs=[analyses],
        )  # fmt: skip
        return self.trained(f"{folder}/sft", kept, size)

    def trained(self, folder: str, rows: str, size: int) -> Model:
        """The base model, fine-tuned on the rows that come of the first `size` steps."""
        base, num_steps = self.base(), self.settings.sft_steps[self.settings.sizes.index(size)]
        trained = self.plan.add(
            folder, "train", "sft", self.plan.path(rows), "--model", base.path, "--preset", "cpu",
            *self.settings.sft, "--max-steps", str(num_steps), *self.seeded, needs=[*base.needs, rows],
        )  # fmt: skip
        return Model(self.plan.path(trained, "model"), (trained,))

    def critic(self) -> None:
        """A critic of whole solutions from the labels of the largest size, beside the cold start from them."""
        plan, settings, folder = self.plan, self.settings, f"{self.folder}/critic"
        steps, student, kept = self.steps(self.largest), self.student(self.largest), settings.num_teacher_analyses
        critiques = plan.add(
            f"{folder}/critiques", "lab", "critiques", plan.path(steps, STEPS), "--model", self.teacher_spec("train"),
            "-n", str(_CRITIQUES_PER_ANALYSIS * kept), *self.seeded, needs=["world", steps], product=CRITIQUES,
        )  # fmt: skip
        rows = plan.add(
            f"{folder}/cold-start", "data", "cold-start", plan.path(critiques, CRITIQUES), "--per-step", str(kept),
            "--prompt", plan.path(critiques, TRAINING_PROMPT), needs=[critiques],
        )  # fmt: skip
        critic = self.trained(f"{folder}/sft", rows, self.largest)
        for count in settings.votes:
            plan.add(
                f"{folder}/judged-{count}", *self.processbench("test", settings.num_judged),
                "--model", f"critic:{self.engine(critic)}", "-k", str(count), "--prompt",
                plan.path(critiques, CRITIC_PROMPT), "--max-tokens", str(_CRITIQUE_TOKENS), *self.seeded,
                "--allow-missing", needs=["world", critiques, *critic.needs],
            )  # fmt: skip
            self.judged(f"{self.folder}/{judged_with(self.largest, count)}", student, num_analyses=count)

    def baseline_classifier(self, size: int) -> Model:
        """The classifier from the same base and the same steps."""
        plan, base, count = self.plan, self.base(), self.settings.num_validation
        steps = self.steps(size)
        held_out = plan.add(
            "validation", "lab", "steps", plan.path("world"),
            "--skip", str(self.settings.world_steps - count), "--count", str(count), needs=["world"], product=STEPS,
        )  # fmt: skip
        trained = plan.add(
            f"{self.folder}/size-{size}/classifier", "train", "classifier", plan.path(steps, STEPS),
            "--validation", plan.path(held_out, STEPS), "--model", base.path, *self.settings.classifier,
            *self.seeded, needs=[*base.needs, steps, held_out],
        )  # fmt: skip
        return Model(plan.path(trained, "model"), (trained,), is_classifier=True)

    def of_round(self, number: int) -> Model:
        """The model of a preference round, from the cold start of all steps."""
        settings = self.settings
        start = self.student(self.largest)
        rounds = self.plan.add(
            f"{self.folder}/rounds", "evolve", self.plan.path(self.steps(self.largest), STEPS),
            "--model", start.path, "--rounds", str(settings.num_rounds),
            "-n", str(settings.round_analyses), "--sampled-steps", str(settings.round_steps),
            "--per-step", str(settings.round_pairs), "--min-repeats", str(settings.round_repeats),
            "--balance" if settings.round_balance else "--no-balance", "--max-tokens", str(_ANALYSIS_TOKENS),
            "--engine-options", self.engine_options, *self.seeded, "--", "--preset", "cpu", *settings.dpo,
            needs=start.needs,
        )  # fmt: skip
        return Model(self.plan.path(rounds, f"round-{number}", "dpo", "model"), (rounds,))

    def best(self) -> Model:
        """The model that the rounds keep, chosen on validation steps."""
        (rounds,) = self.of_round(self.settings.num_rounds).needs
        return Model(self.plan.path(rounds, "model"), (rounds,))

    def judged(self, folder: str, model: Model, *, split: str = "test", num_analyses: int | None = None) -> str:
        judge = self.judge(model, num_analyses or self.settings.num_analyses)
        return self.plan.add(
            folder, *self.processbench(split, self.settings.num_judged), *judge, "--allow-missing",
            needs=["world", *model.needs],
        )  # fmt: skip

    def scaling(self) -> str:
        settings, model = self.settings, self.student(self.largest)
        return self.plan.add(
            f"{self.folder}/scaling", *self.processbench("test", settings.num_scaled),
            *self.judge(model, settings.scaling_analyses), "--stopping", "none", "--all-steps", "--allow-missing",
            needs=["world", *model.needs],
        )  # fmt: skip

    def teacher(self) -> None:
        for count in sorted({1, self.settings.num_analyses}):
            self.plan.add(
                f"{self.folder}/teacher-{count}", *self.processbench("test", self.settings.num_judged),
                "--model", self.teacher_spec("test"), "-k", str(count), *self.prompt, *self.seeded, needs=["world"],
            )  # fmt: skip

    def judged_steps(self, name: str, model: Model) -> str:
        """The labelled steps of the test split, one by one: each has its type of error as its source."""
        return self.plan.add(
            f"{self.folder}/types/{name}", "bench", "steps", self.plan.path("world", "test", "steps.jsonl"),
            *self.judge(model, self.settings.num_analyses), "--allow-missing", needs=["world", *model.needs],
        )  # fmt: skip

    def guidance(self) -> None:
        """The policy's candidates; Best-of-N and guided search by each PRM."""
        plan, settings, folder = self.plan, self.settings, f"{self.folder}/guidance"
        writer = self.policy()
        # The temperature of the archived runs.
        policy = ("--policy", self.engine(writer), "--policy-temperature", "0.7")
        problems = ("--problems", plan.path("world", "test", "problems.jsonl"), "--limit", str(settings.num_guided))
        count = str(settings.num_candidates)
        samples = plan.add(
            f"{folder}/samples", "search", "sample", *policy, "-n", count, "--policy-max-tokens", str(_SOLUTION_TOKENS),
            *problems, *self.seeded, needs=["world", *writer.needs],
        )  # fmt: skip
        for name, model in {"rprm": self.best(), "classifier": self.baseline_classifier(self.largest)}.items():
            judge = self.judge(model, settings.guidance_analyses)
            plan.add(
                f"{folder}/best-of-n-{name}", "search", "best-of-n", "--candidates", plan.path(samples), *judge,
                needs=[samples, *model.needs],
            )  # fmt: skip
            plan.add(
                f"{folder}/guided-{name}", "search", "guided", *policy, "--width", count, *problems, *judge,
                needs=["world", *writer.needs, *model.needs],
            )  # fmt: skip

    def processbench(self, split: str, limit: int) -> Options:
        data = self.plan.path("world", split, "solutions.jsonl")
        return "bench", "processbench", "--data", data, "--limit", str(limit)

    def judge(self, model: Model, num_analyses: int) -> Options:
        """How a model judges: one that writes analyses, or a classifier."""
        if model.is_classifier:
            return "--model", f"classifier:{model.path}", *self.seeded
        return (
            "--model", self.engine(model), "-k", str(num_analyses), "--max-tokens", str(_ANALYSIS_TOKENS), *self.seeded,
        )  # fmt: skip

    def teacher_spec(self, split: str) -> str:
        return f"lab:{self.plan.path('world')}?split={split}&{self.settings.teacher}"

    def engine(self, model: Model) -> str:
        return f"transformers:{model.path}?{self.engine_options}"

    @property
    def engine_options(self) -> str:
        rows = self.settings.max_rows
        return f"max_rows={rows}&concurrency={rows}&dtype=float32"
