"""Options of the commands, each written once: a field of a dataclass is an option, with its default and its help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from rprm import ranges
from rprm.errors import InputError, RunError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from rprm.benchmarks.mathematics import Problems
    from rprm.cluster import Cluster
    from rprm.rewarders.base import StepRewarder
    from rprm.search.candidates import Begun, Policy, SampleTotals
    from rprm.search.guided import Strategy, StrategyName


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose parameters that are dataclasses are options: one for each field, of its type and default. A field
    whose type is not `Annotated` is no option and keeps its default."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        found, types, kind = {name: parameter}, hints, hints[name]
        if is_dataclass(hints[name]):
            types = get_type_hints(kind, include_extras=True)
            fields_of = inspect.signature(kind).parameters.items()
            found = {field: one for field, one in fields_of if get_origin(types[field]) is Annotated}
            groups[name] = kind, list(found)
        parameters += [
            one.replace(annotation=_option(types[field]), kind=one.KEYWORD_ONLY) for field, one in found.items()
        ]

    @wraps(command)
    def run(**values: Any) -> Any:
        for name, (kind, options) in groups.items():
            values[name] = kind(**{option: values.pop(option) for option in options})
        return command(**values)

    # What typer reads.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(annotation: Any) -> Any:
    """A type as typer takes it. An option says of itself in plain texts `Annotated[int, "Its help."]`, or
    `Annotated[str, "--its-name", {"metavar": "TEXT"}, "Its help."]` with more arguments of `typer.Option`; a type of
    `ranges` has its bounds."""
    metadata = getattr(annotation, "__metadata__", ())
    texts = [text for text in metadata if isinstance(text, str)]
    if not texts:
        return annotation
    *names, help = texts
    more = {name: value for one in metadata if isinstance(one, dict) for name, value in one.items()}
    kind = get_args(annotation)[0]
    hint = Annotated[(kind, *(one for one in metadata if isinstance(one, FieldInfo)), "")]  # type: ignore[valid-type]
    if (number := ranges.number_of(hint)) is not None:
        kind, more = number[0] | None, more | {"parser": _reader(hint, number[0].__name__)}
    return Annotated[kind, typer.Option(*names, help=help, **more)]


def _reader(hint: Any, name: str) -> Callable[[Any], Any]:
    """Reads a number within its range; any other is an error of use, exit code 2."""

    def read(value: Any) -> Any:
        try:
            return ranges.taken(hint, value)
        except ValueError as error:
            raise typer.BadParameter(f"{value!r:.80}: {error}") from None

    read.__name__ = name  # what help calls the type
    return read


def given(context: typer.Context, options: DataclassInstance) -> dict[str, Any]:
    """The fields of expanded options that were named on the command line, with their values."""
    sources = {field.name: context.get_parameter_source(field.name) for field in fields(options)}
    return {name: getattr(options, name) for name, source in sources.items() if source and source.name == "COMMANDLINE"}


Output = Annotated[
    Path | None, "--output", "-o", "Run folder: results are kept there, and the same command resumes a killed run."
]
Json = Annotated[bool, "--json", "One JSON object on standard output."]
Model = Annotated[
    str,
    "--model",
    "-m",
    "A known model (`rprm models`), embedded, smollm2, transformers:PATH_OR_ID, vllm:PATH_OR_ID, openai:MODEL@URL, "
    "scripted:; a critic of whole solutions over one of these, critic:SPEC; or a discriminative PRM, "
    "classifier:PATH_OR_ID; options as ?name=value.",
]
Seed = Annotated[ranges.Seed, "Seed of the whole run."]
Map = Annotated[
    list[str] | None, "--map", {"metavar": "FIELD=COLUMN"},
    "Which column of the rows stands for a field: problem=question; again for others.",
]  # fmt: skip
Strict = Annotated[bool, "--strict", "Stop at the first row that cannot be used."]


@dataclass(frozen=True)
class AnalysisOptions:
    """How analyses of steps are sampled. What is None is left to the model and the procedure."""

    num_analyses: Annotated[
        ranges.Draws | None,
        "-k",
        "--num-analyses",
        "Most analyses a step gets (the paper's K).  [default: 10; of a critic 1]",
    ] = None
    force_verdict: Annotated[bool | None, "Where an analysis ends without a verdict, ask for one.  [default: no]"] = (
        None
    )
    ask: Annotated[
        str | None,
        {"metavar": "TEXT|FILE"},
        "What an analysis without a verdict is asked, in place of the prompt's marker; implies --force-verdict.",
    ] = None
    prompt: Annotated[str | None, "Prompt template: a file, or a built-in name (`rprm prompts list`)."] = None
    temperature: Annotated[
        ranges.Temperature | None, "Of the analyses.  [default: 0.95; of a critic 0, with -k 2 and more 1.0]"
    ] = None
    top_p: Annotated[ranges.TopP | None, "Of the analyses.  [default: 0.95; of a critic with -k 2 and more 0.9]"] = None
    max_tokens: Annotated[ranges.Tokens | None, "Longest analysis.  [default: 4096 tokens; of a critic 8192]"] = None
    seed: Seed = 0

    def rewarder(self, model: str, *, in_full: bool = False, **fixed: Any) -> StepRewarder:
        """What rewards steps; `in_full`: every reward in full, as `RPRM.score` gives it. `fixed` are options of
        `load_rewarder` (whose errors see) that the command decides. An `InputError` where everything is to be drawn,
        and early stopping is asked for."""
        from rprm.rewarders import load_rewarder

        options = asdict(self) | fixed
        procedure = options.pop("procedure", "lean")
        stops = options.get("stopping") not in (None, "none") or options.get("first_error_exit")
        if stops and (in_full or procedure != "lean"):
            raise InputError(
                "to draw every analysis of every step (rewards in full, the published procedure, curves), leave out "
                "--stopping and --first-error-exit"
            )
        options["force_verdict"] = _asked(options.pop("ask"), self.force_verdict)
        return load_rewarder(model, procedure="full" if in_full and procedure == "lean" else procedure, **options)


def _asked(ask: str | None, force_verdict: bool | None) -> bool | str | None:
    """What `--ask`, a sentence or a file with one, and `--force-verdict` come to."""
    if ask is None:
        return force_verdict
    if force_verdict is False:
        raise InputError("--ask asks for a verdict: leave out --no-force-verdict")
    try:
        # A sentence has spaces.
        is_file = not any(map(str.isspace, ask)) or (len(ask) < 256 and Path(ask).is_file())
        text = Path(ask).read_text(encoding="utf-8").rstrip("\n") if ask and is_file else ask
    except (OSError, ValueError) as error:
        raise InputError(f"--ask {ask}: no sentence, and no file that can be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise InputError(f"--ask {ask!r}: empty; give a sentence that ends where Yes or No follows, or a file with one")
    return text


@dataclass(frozen=True)
class JudgeOptions(AnalysisOptions):
    """How steps are judged right or wrong."""

    procedure: Annotated[
        Literal["lean", "published"],
        "published: as the published code judges, to compare with: every analysis of every step, P(Yes) in a second "
        "pass from two token ids, a verdict asked for where there is none.",
    ] = "lean"
    threshold: Annotated[
        ranges.Threshold | None, "A step whose reward is below it is called wrong.  [default: 0.5, or the model's own]"
    ] = None
    stopping: Annotated[
        Literal["none", "exact", "confident"] | None,
        "Early stopping within a step; exact changes no decision.  [default: exact]",
    ] = None
    confidence: Annotated[ranges.Confidence, "For --stopping confident: how probable a decision must be."] = 0.99


@dataclass(frozen=True)
class FirstErrorOptions(JudgeOptions):
    """How first errors are found."""

    first_error_exit: Annotated[
        bool | None, "--first-error-exit/--all-steps", "Stop at the first step called wrong.  [default: stop]"
    ] = None


@dataclass(frozen=True)
class ClusterOptions:
    """Where the work is done: in this process, or by replicas of the model on a Ray cluster."""

    ray: Annotated[
        str | None,
        {"metavar": "[ADDRESS]"},
        "Work on a Ray cluster: auto for the one that this machine belongs to, or its address; without one, on this "
        "machine alone. docs/cluster.md",
    ] = None
    replicas: Annotated[
        str | None, {"metavar": "N|N-M"}, "Of --ray: replicas of the model, or from how many to how many.  [default: 1]"
    ] = None
    replica_gpus: Annotated[
        ranges.Gpus | None, "Of --ray: GPUs of each replica.  [default: of vllm those that it runs on, else 0]"
    ] = None

    def cluster(self, *models: Any) -> Cluster | None:
        """The cluster to work on, with replicas of what has these models; None for this process alone."""
        from rprm.cluster import Cluster

        if self.ray is None:
            if self.replicas is not None or self.replica_gpus is not None:
                raise InputError("--replicas and --replica-gpus are of --ray: give that too")
            return None
        found = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", self.replicas or "1", re.ASCII)
        fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if fewest > most:
            raise InputError(f"--replicas {self.replicas}: give how many, as in 4, or from how many to how many, 2-8")
        num_gpus = self.replica_gpus
        if num_gpus is None:
            num_gpus = max(getattr(getattr(model, "engine", model), "num_gpus", 0) for model in models)
        return Cluster(self.ray, fewest, most, num_gpus=num_gpus)


@dataclass(frozen=True)
class SetOptions:
    """Problems of the mathematics sets."""

    sets: Annotated[
        str | None,
        "--set",
        {"metavar": "LIST"},
        "Mathematics sets, with commas between them: aime24, amc23, math500, olympiadbench, college_math, "
        "minerva_math, gsm8k.",
    ] = None
    data: Annotated[
        str | None, {"metavar": "PATH"}, "Of --set: a folder with SET.jsonl, or one file, in place of the hub."
    ] = None
    revision: Annotated[str | None, "Hub revision of the set, where --set names one."] = None
    limit: Annotated[ranges.Rows | None, "The first N problems (of each set) alone."] = None
    problems: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's results depend on besides its source."""
        return {} if self.limit is None else {"limit": self.limit}

    def read(self) -> Problems:
        """The problems that are named: of sets, or of a file (else `InputError`)."""
        from rprm.benchmarks.mathematics import read_mathematics, read_problem_file

        if self.problems is None and self.sets is not None:
            return read_mathematics(self.sets, self.data, revision=self.revision, limit=self.limit)
        if self.problems is None or self.sets is not None:
            raise InputError("say which problems: --set LIST for mathematics sets, or --problems FILE for your own")
        if self.data is not None or self.revision is not None:
            raise InputError("--data and --revision say where --set is: leave them out with --problems")
        return read_problem_file(self.problems, limit=self.limit)


@dataclass(frozen=True)
class ProblemOptions(SetOptions):
    """Problems of the mathematics sets, or of a file."""

    problems: Annotated[
        Path | None, {"metavar": "FILE"}, "Problems of your own: {id?, problem | question, answer?, set?} a row."
    ] = None


@dataclass(frozen=True)
class PolicyOptions:
    """How a policy writes. T = 1.0 is the paper's guided search (0.7 is only its script's default), top-p the script's
    (NJUNLP/R-PRM, src/reward-guide-search)."""

    policy_prompt: Annotated[str | None, "The policy's template: a file, a model folder, or a built-in name."] = None
    policy_temperature: Annotated[ranges.Temperature, "Of the policy."] = 1.0
    policy_top_p: Annotated[ranges.TopP, "Of the policy."] = 0.95
    policy_max_tokens: int = 2048

    def policy(self, spec: str, seed: int = 0, **stepwise: Any) -> Policy:
        """A policy; an `RprmError` where an engine or template cannot be loaded."""
        from rprm.engines import Sampling, load_engine
        from rprm.prompts import carried_policy_template, load_policy_template
        from rprm.search.candidates import Policy

        template = load_policy_template(self.policy_prompt or carried_policy_template(spec))
        sampling = Sampling(self.policy_temperature, self.policy_top_p, self.policy_max_tokens, seed)
        return Policy(load_engine(spec), template, sampling, **stepwise)


@dataclass(frozen=True)
class CompletionOptions(PolicyOptions):
    """How a policy completes solutions that are begun."""

    policy_max_tokens: Annotated[ranges.Tokens, "Longest completion, in tokens."] = 2048


@dataclass(frozen=True)
class CandidateOptions(PolicyOptions):
    """How a policy writes candidates: 8, as next steps in the paper's guided search."""

    policy_max_tokens: Annotated[ranges.Tokens, "Longest solution, in tokens."] = 2048
    num_candidates: Annotated[ranges.Draws, "-n", "--num-candidates", "Solutions of each problem."] = 8

    def sample(
        self, spec: str, seed: int, problems: Problems, settings: dict[str, Any], output: Path, strict: bool,
        on_result: Callable[[Any, Any], object] = lambda problem, row: None, begun: Mapping[str, Begun] | None = None,
        replicated: ClusterOptions | None = None,
    ) -> SampleTotals:  # fmt: skip
        """Sample candidates into a run folder, behind a progress line."""
        from rprm.cli.judge import run_behind_progress
        from rprm.search.candidates import sample_candidates

        policy, number = self.policy(spec, seed), self.num_candidates
        if policy.sampling.temperature == 0.0 and number > 1:
            raise InputError(
                f"at temperature 0 all {number} candidates of a problem would be equal; ask for one (-n 1), or raise "
                "--policy-temperature"
            )
        cluster = (replicated or ClusterOptions()).cluster(policy)
        totals = run_behind_progress(
            lambda callbacks: sample_candidates(
                policy, problems, number, begun=begun, output=output, settings=settings, strict=strict,
                callbacks=callbacks, cluster=cluster,
            ),
            policy.engine.aclose, len(problems.problems), on_result, noun="problems", activity="sampling",
            cluster=cluster,
        )  # fmt: skip
        if totals.num_problems == totals.num_refused:
            raise RunError(f"the policy solved no problem; the first: {totals.failure}")
        return totals


Aggregate = Annotated[
    Literal["min", "last", "product", "mean"], "--aggregate", "How step rewards become the reward of a solution."
]


@dataclass(frozen=True)
class ChoiceOptions:
    """How the best candidate, or next step, is chosen."""

    aggregate: Aggregate = "min"
    stopping: Annotated[
        Literal["none", "exact"],
        "exact: stop judging once the choice is certain; the choice is the same. none: judge everything, so that the "
        "run can serve other choices (votes, other aggregations, fewer candidates).",
    ] = "exact"
    wave: Annotated[
        ranges.Draws | None,
        "For --stopping exact: analyses of a problem drawn at once. Fewer draw less in total, more finish sooner.  "
        "[default: 4; of guided, beam and dvts two for each next step]",
    ] = None


@dataclass(frozen=True)
class SearchOptions(ChoiceOptions):
    """How a search step by step spends its samples."""

    aggregate: Aggregate = "last"
    num_samples: Annotated[
        ranges.Draws | None, "-n", "--num-samples", "Of beam and dvts: next steps in a round.  [default: 4]"
    ] = None
    width: Annotated[ranges.Draws | None, "Next steps after each step held.  [default: 8; of beam and dvts 4]"] = None
    max_rounds: Annotated[ranges.Draws | None, "Most steps of a solution.  [default: 30; of beam and dvts 40]"] = None
    step_tokens: Annotated[ranges.Tokens, "Longest step, in tokens."] = 512
    thinking_steps: Annotated[
        bool,
        "--thinking-steps",
        "Of a policy that thinks, take the steps of its thinking too: they are judged as others.",
    ] = False
    max_solution_tokens: Annotated[
        ranges.Tokens | None, "A solution that has not ended by then is given up.  [default: no limit]"
    ] = None

    def strategy(self, name: StrategyName) -> Strategy:
        from rprm.search.guided import search_strategy

        if name == "guided" and self.num_samples is not None:
            raise InputError("guided search has one beam: --width says how many next steps it samples")
        return search_strategy(
            name, n=self.num_samples, width=self.width, aggregation=self.aggregate, max_rounds=self.max_rounds,
            max_solution_tokens=self.max_solution_tokens, racing=self.stopping == "exact", wave=self.wave,
        )  # fmt: skip
