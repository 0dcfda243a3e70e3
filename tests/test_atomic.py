"""Files and directories are there whole or not at all; what a killed writer left goes with the next writing."""

import signal
import subprocess
import sys
import threading

import pytest

from rote.atomic import leftovers, whole_directory, write_atomic
from rote.audit.run_directory import RunDirectory
from rote.errors import InputError

# A writer that stops in the middle, and waits to be killed there.
STOPS = """
import sys, time
from rote import atomic
def stop(*_):
    print("writing", flush=True)
    time.sleep(60)
if sys.argv[1] == "file":
    atomic.os.fsync = stop
    atomic.write_atomic(sys.argv[2], "new")
else:
    with atomic.whole_directory(sys.argv[2]) as part:
        (part / "half").write_text("half")
        stop()
"""


def write(kind, target, text="whole"):
    if kind == "file":
        write_atomic(target, text)
    else:
        with whole_directory(target) as part:
            (part / "name").write_text(text)


def read(kind, target):
    return (target if kind == "file" else target / "name").read_text()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_killed_writer_left_goes_with_the_next_writing(kind, tmp_path):
    target = tmp_path / "result"
    other = tmp_path / ".result.x.tmp"  # not a name that Rote gives
    other.write_text("mine")
    process = subprocess.Popen([sys.executable, "-c", STOPS, kind, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "writing\n"
        (half,) = leftovers(target)
        assert not target.exists()
        write(kind, target, "beside a live writer")
        assert leftovers(target) == [half]  # alive: not taken from under its hands
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert half.exists()
    assert read(kind, target) == "beside a live writer"
    if kind == "directory":
        (target / "name").unlink()
    write(kind, target)
    assert read(kind, target) == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([other, target])


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_error_leaves_what_was_there(kind, tmp_path, monkeypatch):
    target = tmp_path / "result"
    write(kind, target)
    monkeypatch.setattr("rote.atomic.os.fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match=r"full|empty"):  # a directory that is not empty is not replaced
        write(kind, target, "other")
    assert read(kind, target) == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    failed = []

    def work(number):
        try:
            for _ in range(20):
                write_atomic(tmp_path / "result", str(number) * 1000)
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert len(set((tmp_path / "result").read_text())) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "result"]


def test_a_run_that_was_killed_while_it_claimed_its_directory_begins_again(tmp_path):
    (tmp_path / ".run.json.abcd_123.tmp").write_text("{")
    assert RunDirectory.claim(tmp_path, {"kind": "audit"}).run["kind"] == "audit"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "run.json").rename(tmp_path / "notes.json")
    with pytest.raises(InputError, match="holds no run"):
        RunDirectory.claim(tmp_path, {"kind": "audit"})
