"""Does peak memory depend on the number of records? The same audit of 1,000 and of 100,000 records, in fresh processes.

A small model, so that the records and not the weights decide. Run: python benchmarks/memory.py [--records 1000 100000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = """
import sys
from pathlib import Path
from rote.audit import AuditSettings, audit_lm
from rote.records import read_records
from rote.runtime import peak_rss_mb, threads
model, records, out = sys.argv[1:4]
with threads(1):
    audit_lm(model, read_records(records), out, settings=AuditSettings(schemes=("top_k=4",)))
print(peak_rss_mb())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--out")
    options = parser.parse_args()
    from rote.models import small_gpt2, train_bpe
    from rote.records import stdlib_documents

    documents = [document.text for document in stdlib_documents()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = train_bpe(documents, vocab_size=1024)
        model = small_gpt2(vocab_size=len(tokenizer), context_length=128, width=64, layers=1, heads=2)
        model.save_pretrained(root / "model")
        tokenizer.save_pretrained(root / "model")
        text = "\n".join(documents)
        found = {}
        for count in options.records:
            file = root / f"{count}.jsonl"
            with file.open("w") as stream:
                for number in range(count):
                    start = number * 7919 % (len(text) - 200)
                    stream.write(
                        json.dumps({"id": str(number), "text": text[start : start + 90], "member": number % 2 == 0})
                        + "\n"
                    )
            done = subprocess.run(
                [sys.executable, "-c", WORKER, str(root / "model"), str(file), str(root / f"run-{count}")],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[count] = float(done.stdout.split()[-1])
            report = (root / f"run-{count}" / "report.html").stat().st_size / 2**20
            print(f"{count:>9,} records: peak {found[count]:,.0f} MiB, report {report:.2f} MiB")
    first, last = found[options.records[0]], found[options.records[-1]]
    print(f"ratio {last / first:.3f}")
    if options.out:
        Path(options.out).write_text(json.dumps({"peak_rss_mb": found, "ratio": last / first}, indent=1))


if __name__ == "__main__":
    main()
