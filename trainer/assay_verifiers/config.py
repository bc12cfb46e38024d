"""The configuration of every built-in verifier: pydantic models and nothing else.

Only pydantic is imported here, so that whoever embeds these models (a job file, a custom resource)
stays light. Unknown keys are refused with the field's path.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    field_validator,
)

SOFT_TYPES = frozenset({"http", "reward-model", "human"})
"""Types whose word is an opinion: no proof stands behind it."""


class VerifierModel(BaseModel):
    """The base of every configuration.

    A subclass has a field `type` with a single literal value: the name by which suites, job files
    and the registry know it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str

    def children(self) -> tuple[VerifierModel, ...]:
        """The configurations that this one is composed of."""
        return ()


ENTRY_POINTS = "assay.verifiers"
"""The group in which packages offer types of their own; see `registry.Kind`."""

MODELS: dict[str, type[VerifierModel]] = {}
"""Every known type's configuration. Those of plug-ins are added when they are first named."""


def parse_verifier(value: Any) -> VerifierModel:
    """The configuration of any known type, from plain data that names its `type`.

    Raises:
        ValueError: no such type, or (pydantic's ValidationError) a field is wrong.
    """
    if isinstance(value, VerifierModel):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError('a verifier is an object with a type, such as {"type": "math"}')
    if value["type"] not in MODELS:
        _add_offered(value["type"])
    return MODELS[value["type"]].model_validate(value)


def _add_offered(type_: str) -> None:
    """Adds the type that an installed package offers. Its modules may import any of ours: so it is
    loaded only now, when all of ours are whole."""
    for point in entry_points(group=ENTRY_POINTS, name=type_):
        try:
            model = point.load().model
        except Exception as reason:
            raise ValueError(
                f"verifier type {type_!r}: {point.value} cannot be loaded: {reason}"
            ) from reason
        MODELS[type_] = model
        return
    raise ValueError(f"unknown verifier type {type_!r}: there are {', '.join(sorted(MODELS))}")


AnyVerifier = Annotated[SerializeAsAny[VerifierModel], PlainValidator(parse_verifier)]

Seconds = Annotated[float, Field(gt=0, le=3600)]


class MathVerifier(VerifierModel):
    """The final answer equals the reference, as mathematics: 1/2 is 0.5, {1, 2} is {2, 1}."""

    type: Literal["math"] = "math"
    timeout: Seconds = Field(5.0, description="Seconds of work on one item until it is masked.")
    answer: Literal["auto", "boxed", "hash", "last-number"] = Field(
        "auto",
        description="Where the answer stands: the last \\boxed{}, after ####, the last number; "
        "auto takes the most explicit one that is there.",
    )
    absoluteTolerance: float = Field(
        1e-6, ge=0, description="How far two decimal numbers may lie apart."
    )
    unit: Literal["ignore", "require"] = Field(
        "ignore", description="Whether a unit in the reference must stand in the answer."
    )


class Limits(BaseModel):
    """What one run of a candidate may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wallSeconds: Seconds = Field(10.0, description="From start to end.")
    cpuSeconds: Annotated[int, Field(ge=1, le=3600)] = 10
    memoryMiB: Annotated[int, Field(ge=16, le=65536)] = Field(
        512, description="Address space of each process."
    )
    processes: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="Processes at a time; 1 means that none can be started."
    )
    openFiles: Annotated[int, Field(ge=8, le=4096)] = 64
    fileMiB: Annotated[int, Field(ge=0, le=4096)] = Field(
        16, description="Everything written to the private /tmp, in all."
    )
    outputKiB: Annotated[int, Field(ge=1, le=65536)] = Field(
        1024, description="Standard output and error, together."
    )


class CodeVerifier(VerifierModel):
    """A program passes its tests, in a sandbox.

    The item's reference holds either `tests` (or `test`; Python that defines `check(candidate)`)
    and `entry_point`, or `cases`: a list of {"stdin": ..., "stdout": ...}.
    """

    type: Literal["code"] = "code"
    sandbox: Literal["auto", "bubblewrap", "landlock", "none"] = Field(
        "auto",
        description="auto takes the first that works here. `none` runs the candidate unprotected: "
        "only for code that you wrote yourself.",
    )
    command: tuple[str, ...] = Field(
        (),
        description="For stdin/stdout cases: the program to run on the candidate's file, such as "
        '["node", "{file}"]; empty means Python.',
    )
    fileName: str = Field(
        "main.py", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The candidate's file."
    )
    compare: Literal["exact", "trimmed", "tokens"] = Field(
        "trimmed",
        description="How stdout is compared: byte by byte, without white space at the ends of "
        "lines and of the whole, or word by word.",
    )
    partial: bool = Field(
        False, description="Whether the share of passed cases is given as partial credit."
    )
    limits: Limits = Limits()


class LogicVerifier(VerifierModel):
    """The answer satisfies the reference's constraints, an SMT-LIB 2 script, by z3.

    The completion's answer is a JSON object of values by constant's name, or SMT-LIB
    `(define-fun ...)`/`(= name value)` forms; every declared constant needs a value.
    """

    type: Literal["logic"] = "logic"
    timeout: Seconds = 10.0
    unique: bool = Field(
        False,
        description="Whether the item is also checked to have no other model than the answer: if "
        "it has one, the verdict is `error`, since the item is ambiguous.",
    )


class ReasoningGymVerifier(VerifierModel):
    """A reasoning-gym task's own scorer. The reference holds `dataset` and `entry`."""

    type: Literal["reasoning-gym"] = "reasoning-gym"
    timeout: Seconds = 10.0
    dataset: str | None = Field(
        None, description="The task's name, where the reference does not give it."
    )
    threshold: float = Field(
        1.0, gt=0, le=1, description="The score from which an answer counts as ok."
    )
    partial: bool = Field(
        False,
        description="Whether a score below the threshold is kept as partial credit. Some scorers "
        "give a little for any answer at all, or for one that hides the right one in many, so by "
        "default it is 0.",
    )


class Rule(BaseModel):
    """One statement in CEL that must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=128)
    cel: str = Field(
        min_length=1,
        description="A CEL expression over `output`, `source` (the document's text), `reference` "
        "and `data` (the reference's `data`), such as output.total == sum(output.lines).",
    )
    weight: float = Field(1.0, gt=0)


class Grounding(BaseModel):
    """Where the output quotes its evidence: every quotation must stand in the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="A JSONPath to the quotations, such as $.findings[*].evidence.")
    minLength: int = Field(1, ge=1, description="Shorter quotations prove nothing and fail.")
    required: bool = Field(True, description="Whether at least one quotation must be there.")


class JsonVerifier(VerifierModel):
    """Structured output of a document: JSON Schema, then rules in CEL, then grounding.

    The reference may hold `source` (the text), `schema` (instead of the configuration's),
    `expected` (values that must be equal, by JSONPath) and `data` (anything the rules want).
    """

    type: Literal["json"] = "json"
    timeout: Seconds = 5.0
    # `schema` is an old method of pydantic's, so the attribute has another name.
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    rules: tuple[Rule, ...] = ()
    grounding: tuple[Grounding, ...] = ()
    partial: bool = Field(
        False, description="Whether the weighted share of the rules that hold is partial credit."
    )
    maxDepth: int = Field(64, ge=1, le=128, description="Of nesting.")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class RegexVerifier(VerifierModel):
    """The completion matches a regular expression of the RE2 syntax (which cannot blow up)."""

    type: Literal["regex"] = "regex"
    pattern: str | None = Field(
        None, max_length=4096, description="Where the reference does not give it."
    )
    mode: Literal["search", "full"] = "search"
    ignoreCase: bool = False
    group: int | str | None = Field(
        None, description="A group of the pattern that must equal the reference's `value`."
    )


class Retry(BaseModel):
    """How failures of a remote judge are tried again: exponential back-off with jitter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempts: int = Field(4, ge=1, le=20)
    firstSeconds: float = Field(0.5, ge=0, le=60)
    maxSeconds: float = Field(20.0, ge=0, le=600)


class HttpVerifier(VerifierModel):
    """A remote judge: POST {id, prompt, completion, reference} -> {score, status?, detail?}.

    Soft.
    """

    type: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://.+")
    timeout: Seconds = Field(30.0, description="Of one attempt.")
    budget: Seconds = Field(120.0, description="Of all attempts and waits together.")
    retry: Retry = Retry()
    concurrency: int = Field(16, ge=1, le=1024)
    tokenEnv: str | None = Field(
        None, description="The environment variable that holds the bearer token."
    )


class RewardModelVerifier(VerifierModel):
    """A model's opinion: an SGLang reward model, or a judge behind an OpenAI-compatible API.

    Soft.
    """

    type: Literal["reward-model"] = "reward-model"
    url: str = Field(pattern=r"^https?://.+", description="The server's base URL.")
    api: Literal["sglang", "openai"] = "openai"
    model: str = "default"
    rubric: str = Field(
        "Judge whether the answer is correct and complete.",
        description="openai: what the judge is told to judge by.",
    )
    template: str = Field(
        "{prompt}\n\n{completion}",
        description="sglang: the text that the reward model reads, which is its chat template with "
        "{prompt} and {completion} in their places: the server does not apply it.",
    )
    scale: tuple[float, float] = Field(
        (0.0, 1.0),
        description="sglang: the raw reward that counts as 0 and the one that counts as 1; "
        "openai: the judge's lowest and highest mark.",
    )
    threshold: float = Field(0.5, gt=0, le=1, description="The score from which it counts as ok.")
    timeout: Seconds = 60.0
    budget: Seconds = 180.0
    retry: Retry = Retry()
    concurrency: int = Field(16, ge=1, le=1024)
    tokenEnv: str | None = None

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not -1e9 <= scale[0] < scale[1] <= 1e9:
            raise ValueError("the scale must rise, within a billion of 0")
        return scale

    @field_validator("template")
    @classmethod
    def _has_places(cls, template: str) -> str:
        if template.count("{completion}") != 1:
            raise ValueError("the template must hold {completion} once")
        return template


class HumanVerifier(VerifierModel):
    """Labels that people gave, JSON lines {id, completion?, sha256?, score, by?}. Soft.

    A completion without a label is `error`.
    """

    type: Literal["human"] = "human"
    labels: str = Field(description="The labels' file; read again when it has changed.")
    queue: str | None = Field(
        None, description="A file to which unlabelled completions are appended, once each."
    )


class Part(BaseModel):
    """A verifier within a weighted sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    weight: float = Field(1.0, gt=0)
    verifier: AnyVerifier


class WeightedVerifier(VerifierModel):
    """The weighted mean of the parts' scores."""

    type: Literal["weighted"] = "weighted"
    parts: tuple[Part, ...] = Field(min_length=1)

    def children(self) -> tuple[VerifierModel, ...]:
        return tuple(part.verifier for part in self.parts)


class AllVerifier(VerifierModel):
    """Every part must be ok; else the score is 0."""

    type: Literal["all"] = "all"
    parts: tuple[AnyVerifier, ...] = Field(min_length=1)

    def children(self) -> tuple[VerifierModel, ...]:
        return self.parts


class FormatFirstVerifier(VerifierModel):
    """`format` is asked first; only where it is ok, `then` gives the score."""

    type: Literal["format-first"] = "format-first"
    format: AnyVerifier
    then: AnyVerifier

    def children(self) -> tuple[VerifierModel, ...]:
        return (self.format, self.then)


for _model in (
    MathVerifier,
    CodeVerifier,
    LogicVerifier,
    ReasoningGymVerifier,
    JsonVerifier,
    RegexVerifier,
    HttpVerifier,
    RewardModelVerifier,
    HumanVerifier,
    WeightedVerifier,
    AllVerifier,
    FormatFirstVerifier,
):
    MODELS[_model.model_fields["type"].default] = _model


class GateLimits(BaseModel):
    """What a gate asks of a candidate.

    It passes only if that holds with the confidence given, fails only if the contrary does, and is
    undecided else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minScore: float | None = Field(
        None, ge=0, le=1, description="The lowest mean score that passes."
    )
    maxRegression: float = Field(
        0.02, ge=0, le=1, description="How far below the incumbent's the mean score may lie."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of each one-sided bound.")
    maxMasked: float = Field(
        0.05, ge=0, le=1, description="The share of answers that may be impossible to judge."
    )
    minItems: int = Field(1, ge=1, description="Fewer judged items decide nothing.")
    looks: int = Field(
        1,
        ge=1,
        le=1000,
        description="How often the same candidate may be asked about at most. The error is shared "
        "out evenly over the looks.",
    )

    @property
    def look_confidence(self) -> float:
        """The confidence of one look's bounds: Bonferroni's share of the error."""
        return 1 - (1 - self.confidence) / self.looks
