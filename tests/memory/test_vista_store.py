"""Stored summaries: quantisation bounds, byte-exact round trips, versions, crashes, and deletion down to the bytes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rote.errors import InputError
from rote.memory.vista import Summary, decode, dequantise, encode, open_store, quantise, raw_events
from rote.memory.vista.quantisation import DTYPES, GROUP, payload_size, scales_of
from rote.memory.vista.value_layout import HEADER, DamagedValueError

VERSION, OTHER = "0123456789abcdef", "fedcba9876543210"


def summary(seed=0, *, tokens=8, dim=32, version=VERSION, states=False, **more):
    rng = np.random.default_rng(seed)
    raw = raw_events(rng.integers(0, 9, 5), rng.integers(0, 2, 5), rng.random(5))
    state = rng.standard_normal((2, 4, 8, 8)).astype(np.float32) if states else None
    vectors = rng.standard_normal((tokens, dim)).astype(np.float32)
    return Summary(vectors, version, 100 + seed, 5e8 + seed, raw, state, **more)


# ---- quantisation


@pytest.mark.parametrize("dim", [1, 31, 32, 40])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 3e4])
def test_error_is_at_most_half_a_scale(dim, dtype, size):
    x = (np.random.default_rng(dim).standard_normal((6, dim)) * size).clip(-5e4, 5e4).astype(np.float32)
    x[2] = 0
    payload = quantise(x, dtype)
    assert len(payload) == payload_size(6, dim, dtype)
    scale = scales_of(x, dtype).astype(np.float64)
    scale = scale[:, None] if dtype == "int8" else np.repeat(scale, GROUP, axis=1)[:, :dim]
    error = np.abs(dequantise(payload, 6, dim, dtype).astype(np.float64) - x)
    assert (error <= scale / 2 * (1 + 1e-5)).all()
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert (scale <= largest / (127 if dtype == "int8" else 7) * 1.001 + 6e-8).all()


def test_quantised_values_are_the_obvious_ones():
    x = np.array([[127.0, -63.4, 0.6, 0.0]], np.float32)
    assert dequantise(quantise(x, "int8"), 1, 4, "int8").tolist() == [[127, -63, 1, 0]]
    assert dequantise(quantise(x / 127 * 7, "int4"), 1, 4, "int4").tolist() == [[7, -3, 0, 0]]
    for dtype in ("float32", "float16"):
        assert np.allclose(dequantise(quantise(x, dtype), 1, 4, dtype), x, rtol=1e-3 if dtype == "float16" else 0)


def test_what_cannot_be_stored_is_refused():
    for bad in (np.full((1, 2), np.nan), np.full((1, 2), 1e6)):
        with pytest.raises(InputError, match="cannot store"):
            quantise(bad, "int8")
    with pytest.raises(InputError, match="int3"):
        quantise(np.zeros((1, 2)), "int3")
    with pytest.raises(InputError, match="cannot have"):
        dequantise(b"123", 2, 4, "int8")


def test_size_is_the_cards_arithmetic():
    assert payload_size(128, 256, "int8") == 128 * 256 + 2 * 128
    one = encode(summary(tokens=128, dim=256), "int8")
    assert 33_000 < len(one) < 33_300


# ---- layout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("states", [False, True])
def test_layout_round_trip(dtype, states):
    given = summary(states=states, written=7.5)
    found = decode(encode(given, dtype), version=VERSION)
    assert (found.version, found.events, found.last_time, found.written) == (VERSION, 100, 5e8, 7.5)
    assert found.raw.tobytes() == given.raw.tobytes()
    assert np.array_equal(found.vectors, dequantise(quantise(given.vectors, dtype), 8, 32, dtype))
    assert (found.states is None) if not states else np.array_equal(found.states, given.states)


def test_every_damaged_byte_is_noticed():
    value = bytearray(encode(summary(tokens=2, dim=4), "int8"))
    for at in range(len(value)):
        broken = value.copy()
        broken[at] ^= 1
        with pytest.raises(DamagedValueError):
            decode(bytes(broken))
    for cut in (0, 10, HEADER.size, len(value) - 1):
        with pytest.raises(DamagedValueError):
            decode(bytes(value[:cut]))


def test_another_models_value_is_refused():
    with pytest.raises(InputError, match=f"{VERSION} cannot be read by {OTHER}"):
        decode(encode(summary(), "int8"), version=OTHER)


# ---- one conformance suite, every back end


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A real redis-server with an append-only file on a free loopback port: (url, its directory)."""
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    home = tmp_path_factory.mktemp("redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--save", "3600 1"]
    server = subprocess.Popen([*command, "--appendonly", "yes", "--appendfsync", "always"], stdout=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}/0", home
    server.terminate()
    server.wait(10)


@pytest.fixture(params=["lmdb", "sqlite", "redis"])
def place(request, tmp_path):
    """(url, directory where the back end keeps its files)."""
    if request.param == "redis":
        url, home = request.getfixturevalue("redis_server")
        import redis

        redis.Redis.from_url(url).flushall()
        return url, home
    if request.param == "lmdb":
        pytest.importorskip("lmdb")
        return f"lmdb:{tmp_path / 'store'}", tmp_path / "store"
    return f"sqlite:{tmp_path / 'store.db'}", tmp_path


def files_hold(home, *needles):
    """Which of these bytes lie in any file below a directory."""
    content = b"".join(file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file())
    return [needle for needle in needles if needle in content]


def test_round_trip_versions_and_order(place):
    given = {f"user {n}": summary(n) for n in range(20)} | {"ünïcode/…": summary(99)}
    with open_store(place[0], version=VERSION) as store, open_store(place[0], version=OTHER, dtype="float32") as other:
        store.put_many(given)
        other.put_many({"user 3": summary(3, version=OTHER)})
        raw = {user: encode(value, "int8") for user, value in given.items()}
        assert store._read(VERSION, ["user 3", "nobody", "ünïcode/…"]) == [raw["user 3"], None, raw["ünïcode/…"]]
        assert store.get("nobody") is None
        assert [found and found.events for found in store.get_many(["user 2", "x", "user 1"])] == [102, None, 101]
        assert sorted(store.scan()) == sorted(given)
        assert sorted(other.scan()) == ["user 3"]
        assert store.versions() == sorted([VERSION, OTHER])
        assert store.stats()["users"] == {VERSION: 21, OTHER: 1}
        assert store.stats()["bytes"] > 0
        store.put_many({"user 3": summary(50)})
        assert store.require("user 3").events == 150
        assert other.require("user 3").events == 103
        with pytest.raises(InputError, match=f"model version {VERSION} only, this model is {OTHER}"):
            other.require("user 4")
        with pytest.raises(InputError, match="no summary of user 'nobody'"):
            other.require("nobody")
        with pytest.raises(InputError, match="do not belong"):
            other.put_many({"user 4": summary(4)})
    with open_store(place[0], version=VERSION) as again:
        assert again.require("user 7").events == 107
        again.close()


def test_deletion_leaves_nothing(place):
    url, home = place
    users = {f"customer-{n:04}": summary(n, tokens=2 if n % 2 else 64) for n in range(120)}
    gone = ["customer-0007", "customer-0060"]
    bytes_of = {user: encode(users[user], "int8")[HEADER.size :] for user in users}
    with open_store(url, version=VERSION) as store, open_store(url, version=OTHER) as other:
        store.put_many(users)
        other.put_many({"customer-0007": summary(7, version=OTHER)})
        traces = [user.encode() for user in gone] + [bytes_of[user] for user in gone]
        if not url.startswith("redis"):
            assert files_hold(home, *traces[:2])  # the search finds what is there
        assert store.delete([*gone, "never-there"]) == {"customer-0007": 2, "customer-0060": 1, "never-there": 0}
        assert store.get_many(gone) == [None, None]
        assert other.get("customer-0007") is None
        assert files_hold(home, *traces) == []
        assert len(list(store.scan())) == 118
        kept = "customer-0061"
        assert store.require(kept).events == 161
        if not url.startswith("redis"):
            assert files_hold(home, bytes_of[kept]) == [bytes_of[kept]]


def test_what_has_expired_is_gone_and_swept(place):
    with open_store(place[0], version=VERSION) as store:
        store.put_many({"old": summary(1, written=time.time() - 100), "new": summary(2)})
    with open_store(place[0], version=OTHER) as store:
        store.put_many({"old": summary(3, version=OTHER)})
    with open_store(place[0], version=VERSION, ttl=50) as store:
        assert [found is None for found in store.get_many(["old", "new"])] == [True, False]
        assert store.sweep() == 1
        assert sorted(store.scan()) == ["new"]
    with open_store(place[0], version=OTHER) as store:
        assert sorted(store.scan()) == ["old"]  # the next model's summaries are not swept with the last one's


def test_redis_expires_by_itself(redis_server):
    with open_store(redis_server[0], version=VERSION, ttl=0.05) as store:
        store.put_many({"brief": summary()})
        time.sleep(0.12)
        assert store._read(VERSION, ["brief"]) == [None]


WRITER = """
import sys
import numpy as np
from rote.memory.vista import Summary, open_store
store = open_store(sys.argv[1], version="0123456789abcdef")
for batch in range(10**6):
    one = Summary(np.full((16, 32), batch % 50, np.float32), store.version, batch, 0.0)
    store.put_many({f"{batch}-{n}": one for n in range(8)})
    print(batch, flush=True)
"""


@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
def test_a_killed_writer_loses_no_committed_summary(kind, tmp_path):
    pytest.importorskip(kind if kind == "lmdb" else "sqlite3")
    url = f"{kind}:{tmp_path / 'store'}"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 40:
            break
    os.kill(writer.pid, signal.SIGKILL)
    committed = max([40, *(int(line) for line in writer.stdout.read().splitlines() if line.isdigit())])
    writer.wait()
    with open_store(url, version=VERSION) as store:
        for batch in range(committed + 1):
            found = store.get_many([f"{batch}-{n}" for n in range(8)])
            assert all(one is not None and one.events == batch for one in found), batch
            assert found[0] is not None
            assert np.allclose(found[0].vectors, batch % 50, atol=0.21)
        users = list(store.scan())
        assert len(users) % 8 == 0  # a batch is there whole or not at all
        store.put_many({"after": summary()})
        assert store.require("after").events == 100


# ---- what only LMDB has


def test_lmdb_finishes_a_deletion_that_was_killed(tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    from rote.memory.vista import lmdb_store

    url, home = f"lmdb:{tmp_path}", tmp_path
    trace = encode(summary(5), "int8")[HEADER.size :]
    with open_store(url, version=VERSION) as store:
        store.put_many({f"u{n}": summary(n) for n in range(9)})
        with monkeypatch.context() as broken:
            broken.setattr(lmdb_store, "write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.delete(["u5"])
        assert store.get("u5") is None
        assert files_hold(home, trace)
        store.put_many({"u10": summary(10)})
        assert files_hold(home, trace, b"/u5") == []
        assert sorted(store.scan()) == sorted(f"u{n}" for n in range(11) if n not in (5, 9))
    assert len(list(home.glob("*.mdb"))) == 1


READER = """
import sys
from rote.memory.vista import open_store
store = open_store(sys.argv[1], version="0123456789abcdef")
for line in sys.stdin:
    print(*[found and found.events for found in store.get_many(line.split())], flush=True)
"""


def test_lmdb_rewriting_in_batches_keeps_everybody_else(tmp_path, monkeypatch):
    monkeypatch.setattr("rote.memory.vista.lmdb_store.COPY_BATCH", 5)
    with open_store(f"lmdb:{tmp_path / 's'}", version=VERSION) as store:
        store.put_many({f"u{n:02}": summary(seed=n) for n in range(23)})
        assert store.delete(["u07", "u19"]) == {"u07": 1, "u19": 1}
        assert list(store.scan()) == [f"u{n:02}" for n in range(23) if n not in (7, 19)]
        assert np.allclose(store.require("u22").vectors, summary(seed=22).vectors, atol=0.05)


def test_lmdb_readers_in_other_processes_see_every_change(tmp_path):
    """Also a deletion's fresh file, and a file that outgrew the reader's map."""
    pytest.importorskip("lmdb")
    url = f"lmdb:{tmp_path}"
    with open_store(url, version=VERSION) as store:
        store.put_many({"a": summary(1), "b": summary(2)})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        reader = subprocess.Popen([sys.executable, "-c", READER, url], text=True, **pipes)
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask(users):
            reader.stdin.write(users + "\n")
            reader.stdin.flush()
            return reader.stdout.readline().split()

        assert ask("a b c") == ["101", "102", "None"]
        store.delete(["a"])
        store.put_many({"c": summary(3)})
        assert ask("a b c") == ["None", "102", "103"]
        reader.stdin.close()
        assert reader.wait(10) == 0


def test_lmdb_grows_when_it_is_full(tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    from rote.memory.vista import lmdb_store

    monkeypatch.setattr(lmdb_store, "FIRST_MAP", 1 << 17)
    with open_store(f"lmdb:{tmp_path}", version=VERSION) as store:
        store.put_many({f"u{n}": summary(n, tokens=64) for n in range(200)})
        assert store.require("u199").events == 299


def test_bad_places_are_one_clear_line(tmp_path):
    pytest.importorskip("lmdb")
    pytest.importorskip("redis")
    file = tmp_path / "file"
    file.write_text("x" * 5000)
    with pytest.raises(InputError, match="a directory, this is a file"):
        open_store(file, version=VERSION)
    with pytest.raises(InputError, match="not a database"):
        open_store(f"sqlite:{file}", version=VERSION)
    with pytest.raises(InputError, match="no such store"):
        open_store(tmp_path / "none", version=VERSION, create=False)
    with pytest.raises(InputError, match="cassandra"):
        open_store("cassandra://x", version=VERSION)
    with pytest.raises(InputError, match="is the server running") as found:
        open_store("redis://:secret@127.0.0.1:1/0", version=VERSION)
    assert "secret" not in str(found.value)
    with pytest.raises(InputError, match="keeps nothing"):
        open_store(tmp_path / "s", version=VERSION, ttl=0)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "CURRENT").write_text("../file")
    with pytest.raises(InputError, match="no file of this store"):
        open_store(tmp_path / "odd", version=VERSION)
