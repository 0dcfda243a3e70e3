"""The run directory of an audit: what is in it, how it is claimed, resumed and read again.

run.json            what was run, on what, with what, how long        inputs.parquet   the records (contents! private)
scores/*.parquet    the one pass over the audited model               records.parquet  results per record, no contents
reference-N/        the pass over reference model N                   findings.json    everything found, masked
extra.json          means of further passes (ReCaLL, ...)             report.html      the page to share
tables/             every value as csv and parquet
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from rote.atomic import leftovers, write_atomic
from rote.errors import InputError, RunMismatchError
from rote.records.table import RecordTable

if TYPE_CHECKING:
    from rote.report import Findings

RUN_SCHEMA_VERSION = "1.0"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunDirectory:
    """An audit's directory, claimed for one model, record table and settings."""

    path: Path
    run: dict[str, Any]

    @classmethod
    def claim(cls, path: str | Path, run: dict[str, Any], *, overwrite: bool = False) -> RunDirectory:
        """Start a run here, or continue the one that is here if it is the same.

        Raises RunMismatchError naming what differs; InputError when the directory holds something that is not a run.
        """
        path = Path(path)
        run = json.loads(json.dumps({"schema_version": RUN_SCHEMA_VERSION, **run}))
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; -o names a directory")
        if (path / RUN_FILE).exists() and overwrite:
            shutil.rmtree(path)
        if (path / RUN_FILE).exists():
            found = read_json(path / RUN_FILE)
            differs = [name for name in ("kind", "identity") if found.get(name) != run.get(name)]
            if "identity" in differs:
                ours, theirs = run.get("identity", {}), found.get("identity", {})
                differs = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            if differs:
                raise RunMismatchError(
                    f"{path}: belongs to another run ({', '.join(differs)} changed); choose another -o, or use"
                    f" --overwrite"
                )
            run = {**found, **{key: value for key, value in run.items() if key not in found}}
        elif path.is_dir() and set(path.iterdir()) > set(leftovers(path / RUN_FILE)):
            raise InputError(f"{path}: is not empty and holds no run; choose another -o")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be created ({error.strerror})") from None
        claimed = cls(path, run)
        claimed.save()
        return claimed

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """A run that is there. Raises InputError when there is none or its format is another version's."""
        path = Path(path)
        if not (path / RUN_FILE).is_file():
            raise InputError(f"{path}: no run here (run.json is missing); give a directory that `rote audit` wrote")
        run = read_json(path / RUN_FILE)
        if run.get("schema_version") != RUN_SCHEMA_VERSION:
            raise InputError(
                f"{path}: run.json has schema version {run.get('schema_version')!r}, this Rote reads"
                f" {RUN_SCHEMA_VERSION!r}"
            )
        return cls(path, run)

    def save(self, **updates: Any) -> None:
        self.run.update(updates)
        write_atomic(self.path / RUN_FILE, json.dumps(self.run, indent=1, sort_keys=True) + "\n")

    def write_inputs(self, records: RecordTable) -> None:
        if not (self.path / "inputs.parquet").exists():
            self.write_table("inputs.parquet", records.table)

    def read_inputs(self) -> RecordTable:
        file = self.path / "inputs.parquet"
        if not file.is_file():
            raise InputError(f"{self.path}: inputs.parquet is missing; run the same audit again")
        return RecordTable(pq.read_table(file))

    def publish(self, found: Findings, *, reveal: bool = False) -> None:
        """findings.json, tables/ and report.html."""
        from rote.report import dump, write_report, write_tables

        dump(found, self.path / "findings.json")
        (self.path / "tables").mkdir(exist_ok=True)
        write_tables(found, self.path / "tables")
        write_report(found, self.path / "report.html", reveal=reveal)

    def write_table(self, name: str, table) -> None:
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(self.path / name, sink.getvalue().to_pybytes())


def read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); use --overwrite or another -o") from None
