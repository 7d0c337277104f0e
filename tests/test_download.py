"""Downloads: servers that break off and lie, archives that attack, and what is left then."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from test_dataset import make_dataset, padded, same
from test_formats import write_cfcql

from inspo.offline import archives, game_data, load_dataset, transfer
from inspo.offline.download import download, find_parts, read_ledger
from inspo.offline.formats import alberdice, folders, vault
from inspo.offline.sources import Source, catalogue, find_source, known_sources
from inspo.utils.errors import DatasetError
from inspo.utils.files import sha256
from inspo.utils.paths import PROJECT_ROOT

gdown = pytest.importorskip("gdown")

QUALITIES = ("expert", "medium", "medium_replay", "mixed")
BLOB = np.random.default_rng(0).bytes(300_000)
PAGE = b"<html><head><title>Google Drive - Quota exceeded</title></head><body>no</body></html>"


# -------------------------------------------------------------------------------------- the server


class Server(ThreadingHTTPServer):
    """`files[path]` is served; `script[path]` says how, one word per request, the last for ever.

    ok; no_range: ignores Range; break N: closes after N bytes; a number: this status; redirect
    WHERE; html: a page; stall: half of it, then silence.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[str]] = {}
        self.headers: dict[str, str] = {"ETag": '"one"'}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str]:
        return [given for _, given in self.requests if given]

    def handle_error(self, request, client_address):  # clients go away: that is the test
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path
        server.requests.append((path, self.headers["Range"]))
        script = server.script.get(path, ["ok"])
        word, _, rest = (script.pop(0) if len(script) > 1 else script[0]).partition(" ")
        if word.isdecimal():
            return self.answer(int(word), {}, b"")
        if word == "redirect":
            return self.answer(302, {"Location": rest}, b"")
        if word == "html":
            return self.answer(200, {"Content-Type": "text/html"}, PAGE)
        if path not in server.files:
            return self.answer(404, {}, b"")
        self.serve(server.files[path], word, rest)

    def serve(self, body: bytes, word: str, rest: str):
        first, status, headers = 0, 200, dict(self.server.headers)
        given, condition = self.headers["Range"], self.headers["If-Range"]
        if given and word != "no_range" and condition in (None, headers.get("ETag")):
            first, status = int(given.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        part = body[first:]
        headers["Content-Length"] = str(len(part))
        sent = int(rest) if word == "break" else len(part) // 2 if word == "stall" else len(part)
        self.answer(status, headers, part[:sent])
        if word == "stall":
            self.server.closing.wait(5)

    def answer(self, status: int, headers: dict[str, str], body: bytes):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "TIMEOUT", 1.0)
    monkeypatch.setattr(transfer, "RETRIES", 2)
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # gdown's pauses
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1000)
    server = Server()
    server.files["/blob"] = BLOB
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def get(server, target, path="/blob") -> str | None:
    return transfer.fetch(server.address + path, target, log=lambda _: None, progress=False)


def refused(server, target, path="/blob") -> str:
    with pytest.raises(DatasetError) as caught:
        get(server, target, path)
    assert not target.exists()
    return str(caught.value)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "blob"


# -------------------------------------------------------------------------------- one file by HTTP


@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        (["ok"], []),
        (["break 100000", "ok"], ["bytes=100000-"]),
        (["break 100000", "break 50000", "ok"], ["bytes=100000-", "bytes=150000-"]),
        (["stall", "ok"], ["bytes=150000-"]),
        (["503", "429", "ok"], []),
        (["redirect /other"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_every_byte_arrives(server, target, script, ranges):
    server.script["/blob"] = script
    server.files["/other"] = BLOB
    get(server, target)
    assert target.read_bytes() == BLOB and os.listdir(target.parent) == ["blob"]
    assert server.ranges() == ranges


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("404", "HTTP status 404"),
        ("500", "HTTP status 500"),
        ("redirect file:///etc/passwd", "file:///etc/passwd"),
        ("redirect /blob", "HTTP status 302"),
        ("break 0", "0 bytes"),
        ("stall", "does not answer any more (timeout)"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(server, target, script, message):
    server.script["/blob"] = [script]
    error = refused(server, target)
    assert message in error and error.startswith(f"{server.address}/blob: cannot be fetched: ")
    assert "\n" not in error


def test_another_call_goes_on(server, target):
    server.script["/blob"] = ["break 100000", "404"]
    assert "0.1 MB are here; the same command goes on there" in refused(server, target)
    server.script["/blob"] = ["ok"]
    get(server, target)
    assert target.read_bytes() == BLOB and server.ranges()[-1] == "bytes=100000-"


def test_the_disk_is_looked_at_first(server, target, monkeypatch):
    monkeypatch.setattr(transfer, "RESERVE", 1 << 60)
    assert "MB are free" in refused(server, target)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1/x", "no connection"),
        ("http://no-such-host.invalid/x", "there is no network"),
        ("http://no-such-host.invalid/datasets/a/b/resolve/main/x.zip", "there is no network"),
    ],
)
def test_no_network(server, target, address, message):
    with pytest.raises(DatasetError, match=message):
        transfer.fetch(address, target, log=print, progress=False)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_file_of_the_hub_is_fetched_at_its_commit(server, target):
    """The hub says which commit `main` is, and the hash of the file there."""
    at = "/datasets/owner/data/resolve/{}/folder/x.zip"
    digest = hashlib.sha256(BLOB).hexdigest()
    server.files[at.format("main")] = b"what is pushed meanwhile"
    server.files[at.format(COMMIT)] = BLOB
    server.headers |= {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{digest}"'}
    assert get(server, target, at.format("main")) == digest
    assert target.read_bytes() == BLOB
    assert [path for path, _ in server.requests] == [at.format("main"), at.format(COMMIT)]


def test_drive_is_left_to_gdown(target, monkeypatch):
    calls = []

    def fake(address, output, **options):
        calls.append((address, options["use_cookies"], options["resume"]))
        raise gdown.exceptions.FileURLRetrievalError(
            "Too many users have viewed this file\n recently"
        )

    monkeypatch.setattr(gdown, "download", fake)
    source = catalogue()["cfcql_drive/2s3z"]
    with pytest.raises(DatasetError, match="Too many users have viewed this file recently"):
        transfer.fetch(source.address, target, log=print, progress=False)
    assert calls == [(source.address, False, True)]
    from gdown.parse_url import parse_url

    assert parse_url(url=source.address) == ("1Hn0CxnGDiwF9i7ugiLCyUYz-GzIkdQeD", True)


# ---------------------------------------------------------------------------------------- archives


def zip_of(path: Path, *entries, **options) -> Path:
    """A zip archive of (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def zip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def tar_of(path: Path, *entries, mode="w") -> Path:
    """A tar archive of (name or TarInfo, bytes)."""
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(name: str) -> bool:
    return True


def unpacked(path: Path) -> dict[str, bytes]:
    folder = path.parent / "out"
    archives.unpack(path, folder, everything)
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_archives_are_unpacked(tmp_path):
    entries = [("a/b/c.txt", b"see"), ("a/empty", b""), ("./d.txt", b"dee")]
    expected = {"a/b/c.txt": b"see", "a/empty": b"", "d.txt": b"dee"}
    makers = [lambda p: zip_of(p, ("x/", b""), *entries, compression=zipfile.ZIP_DEFLATED)]
    makers += [lambda p, m=m: tar_of(p, *entries, mode=m) for m in ("w", "w:gz", "w:xz")]
    for number, make in enumerate(makers):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert unpacked(make(folder / "archive")) == expected


def test_only_what_is_wanted_is_unpacked(tmp_path):
    path = zip_of(tmp_path / "x.zip", ("a/1", b"1"), ("b/2", b"2"))
    names = archives.unpack(path, tmp_path / "out", lambda name: name.startswith("a/"))
    assert sorted(names) == ["a/1", "b/2"]
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a", "1"]


EVIL_NAMES = ["../evil", "a/../../evil", "/evil", "a\\..\\..\\evil", "a\nb"]
EVIL = {
    **{f"zip {name[:20]!r}": lambda p, n=name: zip_of(p, (n, b"x")) for name in EVIL_NAMES},
    **{f"tar {name[:20]!r}": lambda p, n=name: tar_of(p, (n, b"x")) for name in EVIL_NAMES},
    "zip link": lambda p: zip_of(p, (zip_info("l", stat.S_IFLNK | 0o777), b"/"), ("l/evil", b"x")),
    "zip device": lambda p: zip_of(p, (zip_info("l", stat.S_IFCHR | 0o777), b"")),
    "tar link": lambda p: tar_of(p, (tar_info("l", tarfile.SYMTYPE, ".."), b""), ("l/evil", b"x")),
    "tar hard link": lambda p: tar_of(p, (tar_info("l", tarfile.LNKTYPE, "../evil"), b"")),
    "tar device": lambda p: tar_of(p, (tar_info("l", tarfile.CHRTYPE), b"")),
    "tar fifo": lambda p: tar_of(p, (tar_info("l", tarfile.FIFOTYPE), b"")),
}


@pytest.mark.parametrize("make", EVIL.values(), ids=EVIL)
def test_no_way_out_of_the_folder(tmp_path, make):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = make(inner / "archive")
    with pytest.raises(DatasetError, match="refused, nothing was unpacked"):
        unpacked(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "archive"]


def test_a_later_bad_entry_keeps_everything_out(tmp_path):
    for path in (
        zip_of(tmp_path / "x.zip", ("good", b"x"), ("../evil", b"x")),
        tar_of(tmp_path / "x.tar", ("good", b"x"), ("../evil", b"x")),
    ):
        with pytest.raises(DatasetError, match="leads out of the folder"):
            unpacked(path)
        assert not (tmp_path / "out").exists()


def test_bombs_do_not_go_off(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SLACK", 0)
    zeros = bytes(5_000_000)
    for path in (
        zip_of(tmp_path / "x.zip", ("zeros", zeros), compression=zipfile.ZIP_DEFLATED),
        tar_of(tmp_path / "x.tar.xz", ("zeros", zeros), mode="w:xz"),
    ):
        with pytest.raises(DatasetError, match="made to fill disks"):
            unpacked(path)
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    monkeypatch.setattr(archives, "MAX_RATIO", 10**6)
    with pytest.raises(DatasetError, match="3 entries"):
        unpacked(zip_of(tmp_path / "many.zip", *((f"{i}", b"") for i in range(4))))
    monkeypatch.setattr(archives, "RESERVE", 1 << 60)
    with pytest.raises(DatasetError, match="MB are free"):
        unpacked(zip_of(tmp_path / "large.zip", ("zeros", zeros)))


def test_damaged_archives_leave_nothing(tmp_path):
    whole = zip_of(tmp_path / "x.zip", ("a", BLOB), ("b", BLOB[::-1])).read_bytes()
    flipped = bytearray(whole)
    flipped[200_000] ^= 1
    twice = tmp_path / "twice.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        zip_of(twice, ("a", b"1"), ("a", b"2"))
    tarred = tar_of(tmp_path / "x.tar.gz", ("a", BLOB), mode="w:gz").read_bytes()
    nested = zip_of(tmp_path / "nested.zip", ("a", b"1"), ("a/b", b"2"))
    for content in (flipped, tarred[:-5000], nested.read_bytes()):
        path = tmp_path / "damaged"
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"damaged or truncated|cannot be unpacked"):
            unpacked(path)
        assert not (tmp_path / "out").exists()


def test_flipped_bytes_give_clear_errors_only(tmp_path):
    rng = np.random.default_rng(0)
    entries = [(name, name.encode() * 200) for name in ("a/b", "c", "d/e/f")]
    wholes = [
        zip_of(tmp_path / "x", *entries, compression=kind).read_bytes()
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    ]
    wholes += [tar_of(tmp_path / "x", *entries, mode=m).read_bytes() for m in ("w", "w:gz", "w:xz")]
    path, folder = tmp_path / "x", tmp_path / "out"
    for number in range(300):
        content = bytearray(wholes[number % len(wholes)])
        content[rng.integers(len(content))] = rng.choice([0, 255, rng.integers(256)])
        path.write_bytes(content[: rng.integers(len(content))] if number % 7 == 0 else content)
        try:
            archives.require_archive(path, "x")
            archives.unpack(path, folder, everything)
        except DatasetError:
            assert not folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x89HDF\r\n\x1a\n", b"text"])
def test_no_archive(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    assert not archives.is_archive(path)
    with pytest.raises(DatasetError, match="expected a zip or tar archive"):
        archives.require_archive(path, "x")


# ----------------------------------------------------------------------------- the whole download


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """quality -> (dataset, the bytes of a file in CFCQL's layout)."""
    folder = tmp_path_factory.mktemp("parts")
    made = {}
    for seed, quality in enumerate(QUALITIES):
        data = make_dataset(seed=seed)
        write_cfcql(folder / quality, padded(data))
        made[quality] = data, (folder / quality).read_bytes()
    return made


@pytest.fixture(scope="module")
def archive(parts, tmp_path_factory) -> bytes:
    """CFCQL's archive, with the files of another map and what macOS adds."""
    files = [(f"offline_datasets/m_{quality}.h5", parts[quality][1]) for quality in QUALITIES]
    others = [("offline_datasets/other_medium.h5", b"x"), ("__MACOSX/m_medium.h5", b"x")]
    path = tmp_path_factory.mktemp("archive") / "x.zip"
    return zip_of(path, *others, *files, compression=zipfile.ZIP_DEFLATED).read_bytes()


class Bench:
    """`download` with a catalogue of one dataset, `drive/m`, that lies on the test's server."""

    def __init__(self, server: Server, folder: Path, archive: bytes):
        server.files["/x.zip"] = archive
        self.server, self.folder = server, folder
        self.said: list[str] = []
        self.source = Source(
            source="drive",
            env="sc2",
            map_name="m",
            address=server.address + "/x.zip",
            page="https://page.example",
            archive="drive/all.zip",
            files=(),
            qualities={quality: f"m_{quality}.h5" for quality in QUALITIES},
        )

    def __call__(self, **options) -> list[Path]:
        known = {self.source.name: self.source}
        return download(
            self.source.name,
            self.folder,
            known=known,
            log=self.said.append,
            progress=False,
            **options,
        )

    def error(self, **options) -> str:
        with pytest.raises(DatasetError) as caught:
            self(**options)
        return str(caught.value)

    @property
    def ledger(self) -> dict:
        return read_ledger(self.folder / "downloads/ledger.json")

    def left(self) -> list[str]:
        """Every file that stands under a name of its own."""
        files = (file for file in self.folder.rglob("*") if file.is_file())
        return sorted(file.relative_to(self.folder).as_posix() for file in files)


@pytest.fixture
def bench(server, tmp_path, archive) -> Bench:
    return Bench(server, tmp_path / "datasets", archive)


CONVERTED = [f"sc2/m_{quality}.h5" for quality in QUALITIES]
ALL = ["downloads/drive/all.zip", "downloads/ledger.json", *CONVERTED]


def test_download_and_convert(bench, parts):
    bench.server.script["/x.zip"] = ["break 5000", "ok"]
    (bench.folder / "downloads/drive/.m.unpacked/old").mkdir(parents=True)  # of a killed process
    made = bench()
    assert [path.relative_to(bench.folder).as_posix() for path in made] == CONVERTED
    assert bench.left() == ALL
    for quality in QUALITIES:
        read = load_dataset(bench.folder / f"sc2/m_{quality}.h5", map_name="m")
        assert same(read, parts[quality][0])
        assert (read.metadata.env, read.metadata.quality) == ("sc2", quality)
        assert bench.source.address in read.metadata.source
    entry = bench.ledger["drive/all.zip"]
    assert entry["bytes"] == len(bench.server.files["/x.zip"])
    assert entry["sha256"] == sha256(bench.folder / "downloads/drive/all.zip")
    asked = len(bench.server.requests)
    assert bench() == []  # all of it is here
    made[1].unlink()
    assert bench() == made[1:2]  # from the archive that is here
    assert len(bench.server.requests) == asked


@pytest.mark.parametrize("script", ["404", "html", "break 9"])
def test_failures_say_how_to_go_on(bench, script):
    bench.server.script["/x.zip"] = [script]
    error = bench.error()
    assert bench.source.address in error
    assert "python src/dataset.py download drive/m --from-file FILE" in error
    assert "m_expert.h5" in error and "https://page.example" in error
    assert all(name.endswith(".part") for name in bench.left())
    bench.server.script["/x.zip"] = ["ok"]
    assert len(bench()) == 4 and bench.left() == ALL


def test_a_truncated_archive_is_not_kept(bench):
    bench.server.files["/x.zip"] = bench.server.files["/x.zip"][:-100]
    assert "expected a zip or tar archive, found a zip archive" in bench.error()
    assert bench.left() == []


def test_an_archive_of_something_else(bench, tmp_path):
    other = zip_of(tmp_path / "other.zip", ("readme.txt", b"x"))
    bench.server.files["/x.zip"] = other.read_bytes()
    error = bench.error()
    assert "expected m_expert.h5, m_medium.h5" in error and "found readme.txt" in error
    assert not (bench.folder / "sc2").exists()


def test_one_bad_quality_does_not_keep_the_others_out(bench, parts, tmp_path):
    files = [(f"m_{quality}.h5", parts[quality][1]) for quality in ("expert", "mixed")]
    path = zip_of(tmp_path / "x.zip", *files, ("m_medium.h5", b"\x89HDF\r\n\x1a\n"))
    bench.server.files["/x.zip"] = path.read_bytes()
    error = bench.error()
    assert "m_medium.h5: the HDF5 file is truncated" in error and "Converted: " in error
    assert bench.left() == [*ALL[:2], "sc2/m_expert.h5", "sc2/m_mixed.h5"]
    assert any("left out: medium_replay" in line for line in bench.said)


def test_a_malicious_archive_leaves_nothing(bench, tmp_path):
    path = zip_of(tmp_path / "x.zip", ("m_medium.h5", b"x"), ("../../evil", b"x"))
    bench.server.files["/x.zip"] = path.read_bytes()
    assert "leads out of the folder" in bench.error()
    assert bench.left() == ALL[:2]


def test_interrupted_and_resumed(bench, monkeypatch):
    """Ctrl-C in the middle of the body: the part stays, the next call goes on with it."""
    bench.server.script["/x.zip"] = ["break 5000", "ok"]

    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["gdown.download"], "_wait_for_retry", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench()
    monkeypatch.undo()
    (left,) = bench.left()
    assert left.endswith(".part") and (bench.folder / left).stat().st_size == 5000
    assert len(bench()) == 4
    assert bench.server.ranges() == ["bytes=5000-"]
    assert bench.left() == ALL


# ------------------------------------------------------------------------------------- the ledger


def test_a_changed_file_is_seen(bench):
    made = bench()
    made[0].unlink()
    path = bench.folder / "downloads/drive/all.zip"
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"changed")
    error = bench.error()
    assert "has changed" in error and "--force" in error
    assert not made[0].exists()
    assert len(bench(force=True)) == 4  # fetched again
    assert path.read_bytes() == bench.server.files["/x.zip"]


def test_another_file_under_the_same_address(bench, parts, tmp_path):
    first = bench()
    first[0].unlink()
    (bench.folder / "downloads/drive/all.zip").unlink()
    old = bench.ledger
    files = [(f"m_{quality}.h5", parts[quality][1]) for quality in QUALITIES]
    bench.server.files["/x.zip"] = zip_of(tmp_path / "new.zip", *files).read_bytes()
    assert "published anew" in bench.error()
    assert bench.left() == [*ALL[1:2], *CONVERTED[1:]] and bench.ledger == old
    assert len(bench(force=True)) == 4
    assert bench.ledger != old


def test_the_published_hash_is_compared(bench, archive, tmp_path):
    good = hashlib.sha256(archive).hexdigest()
    bench.source = replace(bench.source, sha256="0" * 64)
    assert "SHA-256 0000000000000000... was published" in bench.error() and bench.left() == []
    by_hand = tmp_path / "x.zip"
    by_hand.write_bytes(archive)
    assert "SHA-256 0000000000000000... was published" in bench.error(from_file=by_hand)
    bench.source = replace(bench.source, sha256=good)
    assert len(bench()) == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"bytes": 1}}'])
def test_a_damaged_ledger(bench, content):
    path = bench.folder / "downloads/ledger.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert "ledger.json: the record of what was fetched cannot be read" in bench.error()
    path.unlink()
    assert len(bench()) == 4


def test_a_folder_that_cannot_be_made(bench):
    bench.folder.write_bytes(b"a file where the folder should be")
    assert "cannot be made" in bench.error()
    bench.folder.unlink()
    (bench.folder / "downloads").mkdir(parents=True)
    (bench.folder / "sc2").write_bytes(b"another")
    assert "sc2: cannot be made" in bench.error()


def test_two_at_once(bench):
    results = []
    threads = [threading.Thread(target=lambda: results.append(bench())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, results)) == [0, 4]
    assert len(bench.server.requests) == 1 and bench.left() == ALL


# ------------------------------------------------------------------------------------ --from-file


def test_from_an_archive(bench, archive, tmp_path):
    path = tmp_path / "fetched by hand"
    path.write_bytes(archive)
    assert len(bench(from_file=path)) == 4
    assert bench.left() == ALL[1:] and not bench.server.requests
    assert bench.ledger["drive/all.zip"]["bytes"] == len(archive)
    (bench.folder / CONVERTED[0]).unlink()
    path.write_bytes(archive + b"x")
    assert "has changed" in bench.error(from_file=path)


def test_from_a_folder_and_from_a_file(bench, parts, tmp_path):
    folder = tmp_path / "unpacked/deeper"
    folder.mkdir(parents=True)
    file = folder / "M-Medium-Replay.h5"
    file.write_bytes(parts["medium_replay"][1])
    assert len(bench(from_file=folder.parent)) == 1
    assert bench(from_file=folder / file.name, force=True) == [bench.folder / CONVERTED[2]]
    (folder / "m_medium_replay.h5").write_bytes(b"x")
    assert "is there twice" in bench.error(from_file=folder, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "found empty"),
        (b"PK\x03\x04", "found a zip archive"),
        (PAGE, "found a web page"),
    ],
)
def test_from_something_else(bench, tmp_path, content, message):
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    error = bench.error(from_file=path)
    assert message in error and "--from-file FILE" in error
    assert bench.left() == []


def test_from_an_empty_folder(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "found nothing" in bench.error(from_file=tmp_path / "empty")


# ----------------------------------------------------------------------------- vaults, AlberDICE


def test_vaults(bench, tmp_path):
    """OG-MARL's archives: `{map}.vlt/{uid}`, with a limit that the vault does not state."""
    data = make_dataset(lengths=(3, 5, 2))
    archive = tmp_path / "vaults.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for uid in ("Good", "Medium-Replay"):
            folder = tmp_path / "m.vlt" / uid
            vault.write(folder, data)
            described = json.loads((folder / "metadata.json").read_text())
            (folder / "metadata.json").write_text(
                json.dumps({k: v for k, v in described.items() if k != folders.KEY})
            )
            for file in sorted(folder.rglob("*")):
                packed.write(file, file.relative_to(tmp_path))
    bench.server.files["/x.zip"] = archive.read_bytes()
    bench.source = replace(
        bench.source,
        qualities={"og_marl_good": "m.vlt/Good", "medium_replay": "m.vlt/Medium-Replay"},
        episode_limit=9,
    )
    assert len(bench()) == 2
    read = load_dataset(bench.folder / "sc2/m_og_marl_good.h5", map_name="m")
    np.testing.assert_array_equal(read.lengths, data.lengths)
    assert (read.metadata.quality, read.metadata.episode_limit) == ("og_marl_good", 9)
    assert not list(bench.folder.rglob(".*.unpacked"))


def test_folders_file_by_file(bench, tmp_path):
    """AlberDICE's Bridge in the layout of its repository, one file after the other."""
    published = tmp_path / "published"
    alberdice.write(published, game_data.make_dataset("bridge", "bridge", "optimal"))
    source = catalogue()["alberdice/bridge"]
    place = "/buffer/bridge_from_start/buffer_optimal/"
    for file in published.iterdir():
        bench.server.files[place + file.name] = file.read_bytes()
    bench.source = replace(
        source,
        address=bench.server.address + "/buffer",
        qualities={"alberdice_optimal": source.qualities["alberdice_optimal"]},
    )
    bench.server.script[place + "state.npy"] = ["break 1000", "ok"]
    bench.server.script[place + "obs.npy"] = ["404"]
    assert "obs.npy: cannot be fetched" in bench.error()
    bench.server.script[place + "obs.npy"] = ["ok"]
    assert bench() == [bench.folder / "bridge/bridge_alberdice_optimal.h5"]
    assert (place + "state.npy", "bytes=1000-") in bench.server.requests
    read = load_dataset(bench.folder / "bridge/bridge_alberdice_optimal.h5")
    assert same(read, load_dataset(published)) and len(bench.ledger) == len(source.files)


def test_a_page_in_the_place_of_an_array(bench):
    place = "/buffer/part/"
    bench.source = replace(
        bench.source,
        archive=None,
        address=bench.server.address + "/buffer",
        files=("meta.json", "obs.npy"),
        qualities={"medium": "part"},
    )
    bench.server.files[place + "meta.json"] = b'{"episodes_in_buffer": 1}'
    bench.server.files[place + "obs.npy"] = b"version https://git-lfs.github.com/spec/v1"
    assert "expected npy, found a text file" in bench.error()
    assert bench.left() == ["downloads/drive/m/part/meta.json", "downloads/ledger.json"]


# ---------------------------------------------------------------------------------- the catalogue


def test_the_catalogue_is_sound():
    names = list(catalogue())
    assert names[:4] == [f"cfcql/{m}" for m in ("5m_vs_6m", "2s3z", "3s_vs_5z", "6h_vs_8z")]
    for source in catalogue().values():
        parts = urllib.parse.urlsplit(source.address)
        assert parts.scheme == "https" and parts.netloc and "{" not in source.address
        assert (source.archive is None) == bool(source.files)
        assert source.qualities and source.env
    known = known_sources()
    # Only CFCQL's two addresses hold the same data; nothing else may fight for a name.
    names = [(k.env, k.map_name, k.quality) for k in known if k.source != "cfcql_drive"]
    assert len(set(names)) == len(names)
    drive = {(k.env, k.map_name, k.quality) for k in known if k.source == "cfcql_drive"}
    assert drive <= set(names)
    with pytest.raises(DatasetError, match="Did you mean 'cfcql/5m_vs_6m'"):
        find_source("cfcql/5m_vs6m")


def test_the_names_of_vaults_become_qualities(tmp_path):
    for uid in ("Expert", "Medium", "Medium-Replay", "Mixed", "Other"):
        (tmp_path / "5m_vs_6m.vlt" / uid).mkdir(parents=True)
    found = find_parts(tmp_path, catalogue()["cfcql/5m_vs_6m"].qualities)
    assert {quality: path.name for quality, path in found.items()} == {
        "expert": "Expert",
        "medium": "Medium",
        "medium_replay": "Medium-Replay",
        "mixed": "Mixed",
    }
    inside = find_parts(tmp_path / "5m_vs_6m.vlt/Mixed", catalogue()["cfcql/5m_vs_6m"].qualities)
    assert list(inside) == ["mixed"]


# ------------------------------------------------------------------------------------ the command

COMMAND = """
import sys
from dataclasses import replace
from inspo import dataset
from inspo.offline import sources
known = sources.catalogue()
known["cfcql/2s3z"] = replace(known["cfcql/2s3z"], address="ADDRESS")
sys.exit(dataset.main(sys.argv[1:]))
"""


def test_a_signal_stops_it_cleanly(server, tmp_path):
    server.files["/2s3z.zip"] = BLOB
    server.script["/2s3z.zip"] = ["stall"]
    code = COMMAND.replace("ADDRESS", server.address + "/2s3z.zip")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "download", "cfcql/2s3z", "--datasets-dir", tmp_path],
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "package")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        parts = list(tmp_path.glob("downloads/cfcql/*.part"))
        if parts:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in said and "Traceback" not in said
    assert parts[0].exists() and not list(tmp_path.rglob("*.h5"))


def test_a_dataset_that_is_not_in_the_catalogue(capsys, tmp_path):
    from inspo import dataset

    assert dataset.main(["download", "x/y", "--datasets-dir", str(tmp_path)]) == 2
    assert "found no such dataset" in capsys.readouterr().err
    assert dataset.parse(["download", "x/y"]).datasets_dir == PROJECT_ROOT / "datasets"


def test_what_is_refused_does_not_enter_the_ledger(bench, archive, tmp_path):
    path = tmp_path / "given.zip"
    zip_of(path, ("m_medium.h5", b"no dataset"))
    assert "m_medium.h5" in bench.error(from_file=path) and not bench.ledger
    path.write_bytes(archive)
    assert len(bench(from_file=path)) == 4 and bench.ledger
