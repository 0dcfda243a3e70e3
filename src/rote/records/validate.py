"""What a record row must look like: field names, aliases, and the check of every value.

Knows one row at a time, as a mapping; deliberately knows nothing about files, tables, models or tokenizers.

Fields of a row (all but the content are optional):

| field | meaning | read when absent |
|---|---|---|
| `text` | the passage | |
| `prefix` + `suffix` | the passage in two parts; text = prefix + suffix | `prompt` + `target` |
| `token_ids` | the passage as token ids | `input_ids` |
| `prefix_ids` + `suffix_ids` | the passage as token ids in two parts | |
| `prefix_chars`, `prefix_tokens` | length of the prefix inside `text` / `token_ids` | |
| `id` | unique name | "<file stem>:<line>" |
| `duplicates` | copies in the training data, >= 0 | |
| `member` | was it trained on: true, false, 1, 0 | `label` |
| `group`, `date` | free strings for grouping | |

Contents never appear in an error: field names, types and positions do.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rote.errors import InputError

FIELDS = (
    "id",
    "text",
    "prefix",
    "suffix",
    "token_ids",
    "prefix_ids",
    "suffix_ids",
    "prefix_chars",
    "prefix_tokens",
    "duplicates",
    "member",
    "group",
    "date",
)
ALIASES = {"prefix": "prompt", "suffix": "target", "token_ids": "input_ids", "member": "label"}
PROVENANCE = frozenset({"source"})  # written by Rote itself, never read back
MAX_TOKEN_ID = 2**31 - 1
_MEMBER = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # True == 1 == 1.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,39}")


class RowError(ValueError):
    """A row that is no record. One sentence: which field, what is wrong, what to do."""


def show_name(name: object) -> str:
    """A field name fit for one line of a terminal: no control characters, at most 40 characters."""
    text = str(name)[:40]
    return text if _NAME.fullmatch(text) else json.dumps(text)


def kind(value: Any) -> str:
    """The type of a value in words a data file's author uses."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true/false"
    names = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def closest(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' or ''."""
    near = difflib.get_close_matches(name, [n for n in names if isinstance(n, str)], n=1)
    return f" Did you mean {show_name(near[0])}?" if near else ""


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The column mapping {field of a record: field of the file}, checked. Errors: `InputError` for a field that does
    not exist."""
    for field in columns or {}:
        if field not in FIELDS:
            raise InputError(
                f"{show_name(field)} is not a field of a record.{closest(field, FIELDS)} Fields: {', '.join(FIELDS)}."
            )
    return dict(columns or {})


def known_names(columns: Mapping[str, str]) -> set[str]:
    """Every field of a file that would be read under this mapping."""
    return set(FIELDS) - set(columns) | set(columns.values()) | {a for f, a in ALIASES.items() if f not in columns}


def check_string(value: Any, field: str) -> str:
    """A string that can be encoded; NUL, right-to-left marks and other odd characters are content and stay as they
    are."""
    if not isinstance(value, str):
        raise RowError(f"{field} is {kind(value)}, not a string. Put it in quotes, or map another field.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(
                f"{field} has a lone surrogate (U+{ord(value[error.start]):04X}) at character {error.start + 1}, "
                "which is no character. Repair the encoding, or replace it by U+FFFD."
            ) from None
    return value


def check_content(value: Any, field: str) -> str:
    """A string with something in it."""
    text = check_string(value, field)
    if not text or text.isspace():
        raise RowError(f"{field} is empty. Fill it in or remove the row.")
    return text


def check_count(value: Any, field: str, largest: int = 2**63 - 1) -> int:
    """A whole number >= 0. csv gives strings and parquet may give 4.0; both count when they are exact."""
    number = value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,20}(\.0+)?", value.strip()):
        number = int(value.strip().split(".")[0])
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise RowError(
            f"{field} must be a whole number, not {kind(value)}"
            f"{' with a fraction' if isinstance(value, float) else ''}. Correct or remove it."
        )
    if not 0 <= number <= largest:
        raise RowError(f"{field} must be {'0 or more' if number < 0 else f'at most {largest}'}. Correct it.")
    return number


def check_tokens(value: Any, field: str) -> list[int]:
    """A list of token ids, each in [0, 2^31)."""
    if isinstance(value, str):  # csv has no lists
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(f"{field} is a string that is not a JSON list. Write it as [12, 7, 3].") from None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise RowError(f"{field} is {kind(value)}, not a list of token ids.")
    for position, token in enumerate(value):
        if type(token) is not int:
            raise RowError(f"{field} has {kind(token)} at position {position}; token ids are whole numbers.")
        if not 0 <= token <= MAX_TOKEN_ID:
            raise RowError(
                f"{field} has {'a negative' if token < 0 else 'too large a'} token id at position {position}. "
                f"Ids are 0 to {MAX_TOKEN_ID}."
            )
    return list(value)


def check_label(value: Any, field: str) -> str:
    """A short free value as a string: numbers and dates are written out."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return check_string(value, field)


def check_member(value: Any, field: str) -> bool:
    """true, false, 1 or 0 (also as strings)."""
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, str | int | float) and key in _MEMBER:
        return _MEMBER[key]
    raise RowError(
        f"{field} must be true, false, 1 or 0 (was the record trained on?), "
        f"not {'another number' if isinstance(value, int | float) else kind(value)}. "
        "Rename the field if it means something else."
    )


class RowCheck:
    """Turns one raw row into the values of a record, or raises `RowError`.

    `columns` maps a record's field to the name it has in the file; a field so mapped has no other name.
    """

    def __init__(self, columns: Mapping[str, str] | None = None):
        self.columns = check_columns(columns)
        self.names = {field: self.columns.get(field, field) for field in FIELDS}
        self.aliases = {field: alias for field, alias in ALIASES.items() if field not in self.columns}
        self.known = known_names(self.columns)

    def _get(self, row: Mapping[str, Any], field: str) -> tuple[Any, str]:
        """(value or None, the name it was found under)."""
        name = self.names[field]
        value = row.get(name)
        if value is None and field in self.aliases:
            alias = self.aliases[field]
            # prompt and target speak of a record only together
            if field in ("prefix", "suffix") and (row.get("prompt") is None or row.get("target") is None):
                return None, name
            if row.get(alias) is not None:
                return row[alias], alias
        return value, name

    def _missing(self, row: Mapping[str, Any]) -> RowError:
        fields = [show_name(name) for name in list(row)[:12]]
        has = f"it has {', '.join(fields)}{', ...' if len(row) > 12 else ''}" if fields else "it has no field"
        asked = self.names["text"]
        near = closest(asked, row)
        strings = [name for name, value in row.items() if isinstance(value, str) and name not in self.known]
        if not near and len(strings) == 1:
            near = f" Did you mean {show_name(strings[0])}?"
        wanted = f"no field {show_name(asked)}" + (
            "" if "text" in self.columns else " (nor prefix and suffix, nor token_ids)"
        )
        return RowError(f"{wanted}; {has}.{near} Name the field with --text-column.")

    def _content(self, row: Mapping[str, Any]) -> tuple[str | None, list[int] | None, int | None, int | None]:
        """(text, token_ids, prefix_chars, prefix_tokens)."""
        text, text_name = self._get(row, "text")
        (prefix, prefix_name), (suffix, suffix_name) = self._get(row, "prefix"), self._get(row, "suffix")
        ids, ids_name = self._get(row, "token_ids")
        (head, head_name), (tail, tail_name) = self._get(row, "prefix_ids"), self._get(row, "suffix_ids")
        chars, chars_name = self._get(row, "prefix_chars")
        tokens, tokens_name = self._get(row, "prefix_tokens")
        if text is not None and ids_name == self.aliases.get("token_ids"):
            ids = None  # a tokenized data set keeps both; the text is the record
        for first, second, one, two in ((prefix, suffix, prefix_name, suffix_name), (head, tail, head_name, tail_name)):
            if (first is None) != (second is None):
                there, gone = (one, two) if second is None else (two, one)
                if text is None and ids is None:
                    raise RowError(f"{show_name(there)} without {show_name(gone)}. Give both, or text alone.")
        pair, id_pair = prefix is not None and suffix is not None, head is not None and tail is not None
        given = [
            n
            for n, there in (
                ("text", text is not None),
                ("prefix+suffix", pair),
                ("token_ids", ids is not None),
                ("prefix_ids+suffix_ids", id_pair),
            )
            if there
        ]
        if len(given) > 1:
            raise RowError(f"the content is given twice, as {' and as '.join(given)}. Keep one, or rename the other.")
        if not given:
            raise self._missing(row)
        if pair:
            start = check_string(prefix, show_name(prefix_name))
            return start + check_content(suffix, show_name(suffix_name)), None, len(start), None
        if text is not None:
            body = check_content(text, show_name(text_name))
            if tokens is not None:
                raise RowError(f"{tokens_name} goes with token_ids; for text give prefix and suffix.")
            return body, None, self._cut(chars, chars_name, len(body), "characters"), None
        if id_pair:
            start_ids, end_ids = check_tokens(head, show_name(head_name)), check_tokens(tail, show_name(tail_name))
            if not end_ids:
                raise RowError(f"{show_name(tail_name)} is empty. Fill it in or remove the row.")
            return None, start_ids + end_ids, None, len(start_ids)
        token_ids = check_tokens(ids, show_name(ids_name))
        if not token_ids:
            raise RowError(f"{show_name(ids_name)} is empty. Fill it in or remove the row.")
        if chars is not None:
            raise RowError(f"{chars_name} goes with text; for token ids give prefix_tokens.")
        return None, token_ids, None, self._cut(tokens, tokens_name, len(token_ids), "tokens")

    @staticmethod
    def _cut(value: Any, field: str, length: int, unit: str) -> int | None:
        if value is None or value == "":
            return None
        cut = check_count(value, show_name(field), largest=2**31 - 1)
        if cut >= length:
            raise RowError(
                f"{show_name(field)} is {cut}, but the record has {length} {unit}: "
                "nothing is left after the prefix. Shorten it."
            )
        return cut

    def __call__(self, row: Mapping[str, Any], default_id: str) -> tuple:
        """(id, text, token_ids, prefix_chars, prefix_tokens, duplicates, member, group, date). Errors: `RowError`."""
        text, token_ids, prefix_chars, prefix_tokens = self._content(row)
        values: dict[str, Any] = {}
        for field, check in (
            ("id", check_label),
            ("duplicates", check_count),
            ("member", check_member),
            ("group", check_label),
            ("date", check_label),
        ):
            value, name = self._get(row, field)
            values[field] = None if value is None or value == "" else check(value, show_name(name))
        member, duplicates = values["member"], values["duplicates"]
        if member is not None and duplicates is not None and member != (duplicates > 0):
            raise RowError(
                f"member is {str(member).lower()} but duplicates is {duplicates}: "
                "a record was trained on exactly when duplicates is above 0. Correct one."
            )
        return (
            values["id"] or default_id,
            text,
            token_ids,
            prefix_chars,
            prefix_tokens,
            duplicates,
            member,
            values["group"],
            values["date"],
        )
