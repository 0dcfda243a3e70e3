"""The plot inputs in `findings.json`: every named series, its rows and their units.

Already aggregated: a few thousand rows in all, whatever the number of records. In every row `n` is the number of
*records* behind the point and `low`, `high` its interval. Knows nothing about drawing.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN and no Infinity: both become null. Everything else passes."""
    if isinstance(value, bool):
        return value
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()  # numpy scalar
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(finite_or_none)]
Scalar = Annotated[bool | int | float | str | None, BeforeValidator(finite_or_none)]


class Part(BaseModel):
    """A frozen piece of the findings; a field nobody declared is an error, not silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SurvivalPoint(Part):
    """rate = share of records with p_z >= tau(queries, p): the (n, p) surface (Hayes et al. 2024, arXiv 2410.19482)."""

    population: str
    scheme: str
    queries: Annotated[float, Field(ge=1)]
    p: Annotated[float, Field(gt=0, lt=1)]
    rate: Number
    low: Number = None
    high: Number = None
    n: int | None = None


class HistogramBin(Part):
    """Records with left <= log10 p_z < right; left = right = null counts p_z = 0 (impossible under the scheme)."""

    population: str
    scheme: str
    left: Number
    right: Number
    count: Annotated[int, Field(ge=0)]


class DosePoint(Part):
    """`measure` (a measure name: dose.log_pz, dose.loss, extraction.rate, ...) among records with `duplicates`
    copies in training.

    Controls are drawn as a flat line: give them one row, duplicates 0 and population "control".
    """

    measure: str
    duplicates: Annotated[float, Field(ge=0)]
    value: Number
    low: Number = None
    high: Number = None
    n: int | None = None
    population: str = "target"
    scheme: str | None = None


class RocPoint(Part):
    """One corner of an attack's ROC curve. An attack named "blind..." never saw the model and is drawn grey."""

    attack: str
    fpr: Annotated[float, Field(ge=0, le=1)]
    tpr: Annotated[float, Field(ge=0, le=1)]


class Axis(Part):
    label: str
    log: bool = False


class Line(Part):
    """One line, set of points or set of bars; `low`/`high` draw a band (or error bars)."""

    name: str
    x: list[Scalar]
    y: list[Number]
    low: list[Number] | None = None
    high: list[Number] | None = None
    style: Literal["line", "points", "bars"] = "line"
    control: bool = False


class Figure(Part):
    """A generic figure, for kinds of audit that have no section of their own. `n` = records behind it."""

    name: str
    title: str
    caption: str = ""
    n: int | None = None
    x: Axis
    y: Axis
    lines: list[Line]


class Series(BaseModel):
    """All plot inputs of one findings file. A series with an unknown name is kept and not drawn."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    survival: list[SurvivalPoint] = Field(default_factory=list)
    log_pz_histogram: list[HistogramBin] = Field(default_factory=list)
    dose: list[DosePoint] = Field(default_factory=list)
    roc: list[RocPoint] = Field(default_factory=list)
    figures: list[Figure] = Field(default_factory=list)
