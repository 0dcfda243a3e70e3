"""findings.json: the one format that report, tables, compare, gates and viewer read.

A typed model, its validation, deterministic writing, and the published JSON Schema (`schema/findings.schema.json`).
Knows nothing about models, scores, or how a number was computed.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.report.series import Number, Part, Scalar, Series

SCHEMA_VERSION = "1.0"
SIGNIFICANT_DIGITS = 10  # enough for every interval, few enough that reruns are byte-identical

BREAKDOWNS = frozenset({"duplicates", "group"})  # dimensions that cut the records up; a value without them is the whole

Level = Literal["high", "medium", "low", "info"]


class ModelInfo(BaseModel):
    """The audited model. Other kinds of audit may add fields."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    name: str
    fingerprint: str
    parameters: int | None = None
    architecture: str | None = None
    vocab_size: int | None = None
    context_length: int | None = None
    dtype: str | None = None


class Skipped(Part):
    id: str
    reason: str


class RecordsInfo(BaseModel):
    """What was audited. `n` counts every record given, skipped ones included."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    name: str
    fingerprint: str
    n: Annotated[int, Field(ge=0)]
    targets: int | None = None
    controls: int | None = None
    tokens: int | None = None
    skipped: list[Skipped] = Field(default_factory=list)


class Verdict(Part):
    """One plain sentence with the number and its interval. `measure` and `dims` say which value it speaks about."""

    level: Level
    text: str
    measure: str | None = None
    dims: dict[str, Scalar] = Field(default_factory=dict)


class Guard(Part):
    """A validity check. A failed one is printed above every number of the measures it `spoils`."""

    name: str
    title: str
    status: Literal["pass", "fail", "not_run"]
    value: Number = None
    low: Number = None
    high: Number = None
    limit: Number = None
    spoils: list[str] = Field(default_factory=list)
    message: str = ""


class MeasureValue(BaseModel):
    """A number with its interval, its n, and any dimensions (population, scheme, queries, p, duplicates, ...)."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    value: Number
    low: Number = None
    high: Number = None
    n: int | None = None
    interval: str | None = None

    @property
    def dims(self) -> dict[str, Any]:
        """The dimensions, without those left null."""
        return {key: item for key, item in sorted((self.__pydantic_extra__ or {}).items()) if item is not None}


class Measure(Part):
    """What a number means, and its values."""

    name: str
    title: str
    definition: str
    range: tuple[Number, Number] | None = None
    direction: str
    unit: str
    source: str
    informs: str
    values: list[MeasureValue]

    @model_validator(mode="after")
    def _one_value_per_dimensions(self) -> Measure:
        seen = set()
        for value in self.values:
            key = dims_key(value.dims)
            if key in seen:
                raise ValueError(f"two values of {self.name} have the same dimensions")
            seen.add(key)
        return self

    def select(self, **dims: Any) -> list[MeasureValue]:
        """The values whose dimensions contain `dims` (100 == 100.0), those with the fewest others first."""
        chosen = [v for v in self.values if all(same(v.dims.get(key), want) for key, want in dims.items())]
        return sorted(chosen, key=lambda v: len(v.dims))


class Token(Part):
    """One token of an exposed record. `t` is null when masked; `p` is null where nothing was predicted."""

    t: str | None = None
    p: Number = None
    rank: int | None = None
    n_chars: int | None = None


class Exposed(BaseModel):
    """One of the most exposed records, token by token."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    id: str
    population: str = "target"
    duplicates: Number = None
    group: str | None = None
    log_pz: Number = None
    queries_p50: Number = None
    greedy: bool | None = None
    longest_run: int | None = None
    prefix_tokens: int | None = None
    tokens: list[Token] = Field(default_factory=list)
    masked: bool = True


class Findings(Part):
    """Everything an audit found. See the module docstring of `rote.report.series` for the plot inputs."""

    schema_version: Literal["1.0"]
    kind: str
    title: str
    rote_version: str
    model: ModelInfo
    records: RecordsInfo
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    verdicts: list[Verdict] = Field(default_factory=list)
    guards: list[Guard] = Field(default_factory=list)
    measures: list[Measure] = Field(default_factory=list)
    series: Series = Field(default_factory=Series)
    exposed: list[Exposed] = Field(default_factory=list)
    caveats: list[str] = Field(default_factory=list)
    reproduce: str = ""

    @model_validator(mode="after")
    def _unique_measures(self) -> Findings:
        names = [m.name for m in self.measures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"measure {twice[0]} is listed twice")
        return self

    def measure(self, name: str) -> Measure | None:
        """The measure called `name`, or None."""
        return next((m for m in self.measures if m.name == name), None)

    def failed_guards(self, measure: str | None = None) -> list[Guard]:
        """Failed guards, of all measures or of those that spoil `measure` ("membership" spoils every membership.*)."""
        failed = [g for g in self.guards if g.status == "fail"]
        return failed if measure is None else [g for g in failed if any(spoils(s, measure) for s in g.spoils)]

    def masked(self) -> Findings:
        """The same findings without one character of record text."""
        hide = [
            e.model_copy(update={"masked": True, "tokens": [t.model_copy(update={"t": None}) for t in e.tokens]})
            for e in self.exposed
        ]
        return self.model_copy(update={"exposed": hide})


def spoils(pattern: str, measure: str) -> bool:
    """Whether a guard's `spoils` entry names `measure`: the name itself, or a family ("membership")."""
    return measure == pattern or measure.startswith(pattern + ".")


def same(a: Any, b: Any) -> bool:
    """Equality of two dimension values: numbers as numbers to 1e-9, the rest exactly."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-300)
    return a == b


def dims_key(dims: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A hashable key of dimensions, equal for 100 and 100.0."""
    return tuple(
        (k, float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v) for k, v in sorted(dims.items())
    )


def rounded(value: Any) -> Any:
    """JSON-able copy: floats to 10 significant digits, NaN and infinities to null, -0 to 0."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0 if math.isfinite(value) else None
    return value


def parse(data: Any, *, where: str = "findings") -> Findings:
    """Validate a dict. Raises InputError naming the field, never its content (it may be secret)."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: not a JSON object, so not a findings file")
    _check_version(data.get("schema_version"), where)
    try:
        return Findings.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{where}: field {field or '(top)'}: {first['msg']}{more}; see findings.schema.json") from None


def _check_version(version: Any, where: str) -> None:
    if version is None:
        raise InputError(f"{where}: no schema_version, so not a findings file; point at the findings.json of a run")
    try:
        found = tuple(int(part) for part in str(version).split("."))
    except ValueError:
        raise InputError(f"{where}: schema_version is not of the form 1.0; re-make it with: rote report RUN") from None
    known = tuple(int(part) for part in SCHEMA_VERSION.split("."))
    if found < known:
        raise InputError(
            f"{where}: written in schema {version}, this Rote reads {SCHEMA_VERSION}; re-make it with: rote report RUN"
        )
    if found > known:
        raise InputError(
            f"{where}: written by a newer Rote (schema {version}, this one reads {SCHEMA_VERSION}); upgrade Rote"
        )


def loads(text: str | bytes, *, where: str = "findings") -> Findings:
    """Parse JSON text and validate it."""

    def refuse(token: str) -> None:
        raise InputError(f"{where}: {token} is not JSON; write null")

    try:
        data = json.loads(text, parse_constant=refuse)
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text; point at the findings.json of a run") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: line {error.lineno} is not JSON ({error.msg}); the file may be cut off") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply to be a findings file") from None
    return parse(data, where=where)


def load(path: str | Path) -> Findings:
    """Read a findings.json, or the one inside a run directory."""
    file = Path(path)
    if file.is_dir():
        file = file / "findings.json"
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; make it with: rote report RUN") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    return loads(text, where=str(file))


def dumps(findings: Findings) -> str:
    """Deterministic JSON text: sorted keys, 10 significant digits, null for NaN, a final newline, ASCII only."""
    return json.dumps(rounded(findings.model_dump()), sort_keys=True, indent=1, allow_nan=False) + "\n"


def dump(findings: Findings, path: str | Path) -> Path:
    """Write findings.json atomically (into `path`, or `path`/findings.json when it is a directory)."""
    file = Path(path)
    return write_atomic(file / "findings.json" if file.is_dir() else file, dumps(findings))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of findings.json, generated from the model."""
    schema = Findings.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Rote findings", **schema}


def published_schema() -> dict[str, Any]:
    """The schema as shipped with the package."""
    return json.loads(resources.files("rote.report").joinpath("schema/findings.schema.json").read_text("utf-8"))
