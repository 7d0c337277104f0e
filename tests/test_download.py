"""Downloads: servers that break off and lie, archives that attack, and what is left then."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import sys
import tarfile
import threading
import urllib.parse
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from server import PAGE, Server, serving
from test_dataset import make_dataset, padded, same
from test_formats import write_cfcql

from inspo import dataset
from inspo.offline import archives, game_data, load_dataset, sources, transfer
from inspo.offline.download import download, read_ledger
from inspo.offline.formats import alberdice, folders, vault
from inspo.offline.sources import Source, catalogue, find_source, known_sources
from inspo.utils.errors import DatasetError
from inspo.utils.files import sha256
from inspo.utils.paths import PROJECT_ROOT

gdown = pytest.importorskip("gdown")

QUALITIES = ("expert", "medium", "medium_replay", "mixed")
BLOB = np.random.default_rng(0).bytes(300_000)


# -------------------------------------------------------------------------------------- the server


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "TIMEOUT", 1.0)
    monkeypatch.setattr(transfer, "RETRIES", 2)
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # gdown's pauses
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1000)
    with serving() as server:
        server.files["/blob"] = BLOB
        yield server


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


def test_the_disk_is_looked_at_first(server, target, monkeypatch):
    monkeypatch.setattr(transfer, "RESERVE", 1 << 60)
    assert "MB are free" in refused(server, target)


def test_no_network(server, target):
    for address, message in (
        ("http://127.0.0.1:1/x", "no connection"),
        ("http://no-such-host.invalid/datasets/a/b/resolve/main/x.zip", "there is no network"),
    ):
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
    """A zip archive of (name, bytes, mode and all: 0 for a plain file)."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = sum(mode) << 16, archive.compression
            archive.writestr(info, content)
    return path


def tar_of(path: Path, *entries, mode="w") -> Path:
    """A tar archive of (name, bytes, type and target of a link: none for a plain file)."""
    with tarfile.open(path, mode) as archive:
        for name, content, *link in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type, info.linkname = link or (tarfile.REGTYPE, "")
            archive.addfile(info, io.BytesIO(content))
    return path


def unpacked(path: Path, wanted=lambda name: True) -> dict[str, bytes]:
    folder = path.parent / "out"
    archives.unpack(path, folder, wanted)
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
    path = zip_of(tmp_path / "x.zip", ("a/1", b"1"), ("b/2", b"2"))
    assert unpacked(path, lambda name: name.startswith("a/")) == {"a/1": b"1"}  # what is wanted


EVIL_NAMES = ["../evil", "a/../../evil", "/evil", "a\\..\\..\\evil", "a\nb"]
EVIL = {
    **{f"zip {name[:20]!r}": lambda p, n=name: zip_of(p, (n, b"x")) for name in EVIL_NAMES},
    **{f"tar {name[:20]!r}": lambda p, n=name: tar_of(p, (n, b"x")) for name in EVIL_NAMES[:3]},
    "zip, later": lambda p: zip_of(p, ("good", b"x"), ("../evil", b"x")),
    "tar, later": lambda p: tar_of(p, ("good", b"x"), ("../evil", b"x")),
    "zip link": lambda p: zip_of(p, ("l", b"/", stat.S_IFLNK | 0o777), ("l/evil", b"x")),
    "zip device": lambda p: zip_of(p, ("l", b"", stat.S_IFCHR | 0o777)),
    "tar link": lambda p: tar_of(p, ("l", b"", tarfile.SYMTYPE, ".."), ("l/evil", b"x")),
    "tar hard link": lambda p: tar_of(p, ("l", b"", tarfile.LNKTYPE, "../evil")),
    "tar device": lambda p: tar_of(p, ("l", b"", tarfile.CHRTYPE, "")),
    "tar fifo": lambda p: tar_of(p, ("l", b"", tarfile.FIFOTYPE, "")),
}


@pytest.mark.parametrize("make", EVIL.values(), ids=EVIL)
def test_no_way_out_of_the_folder(tmp_path, make):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = make(inner / "archive")
    with pytest.raises(DatasetError, match="refused, nothing was unpacked"):
        unpacked(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "archive"]


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
    for content in (flipped, twice.read_bytes(), tarred[:-5000], nested.read_bytes()):
        path = tmp_path / "damaged"
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"damaged or truncated|cannot be unpacked"):
            unpacked(path)
        assert not (tmp_path / "out").exists()


def test_flipped_bytes_give_clear_errors_only(tmp_path):
    rng, path, folder = np.random.default_rng(0), tmp_path / "x", tmp_path / "out"
    entries = [(name, name.encode() * 200) for name in ("a/b", "c", "d/e/f")]
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    wholes = [zip_of(path, *entries, compression=kind).read_bytes() for kind in kinds]
    wholes += [tar_of(path, *entries, mode=m).read_bytes() for m in ("w", "w:gz", "w:xz")]
    for number in range(300):
        content = bytearray(wholes[number % len(wholes)])
        content[rng.integers(len(content))] = rng.choice([0, 255, rng.integers(256)])
        path.write_bytes(content[: rng.integers(len(content))] if number % 7 == 0 else content)
        try:
            archives.require_archive(path, "x")
            unpacked(path)
        except DatasetError:
            assert not folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
    for content in (b"", b"PK\x03\x04 and no more", b"\x89HDF\r\n\x1a\n", b"text"):
        path.write_bytes(content)
        assert not archives.is_archive(path)
        with pytest.raises(DatasetError, match="expected a zip or tar archive"):
            archives.require_archive(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


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
            source="drive", env="sc2", map_name="m", address=server.address + "/x.zip",
            page="https://page.example", archive="drive/all.zip", files=(),
            qualities={quality: f"m_{quality}.h5" for quality in QUALITIES},
        )  # fmt: skip

    def __call__(self, **options) -> list[Path]:
        known = {self.source.name: self.source}
        options |= {"known": known, "log": self.said.append, "progress": False}
        return download(self.source.name, self.folder, **options)

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


def test_failures_say_how_to_go_on(bench):
    for script in ("404", "html", "break 9"):
        bench.server.script["/x.zip"] = [script]
        error = bench.error()
        assert bench.source.address in error
        assert "python src/dataset.py download drive/m --from-file FILE" in error
        assert "m_expert.h5" in error and "https://page.example" in error
        assert all(name.endswith(".part") for name in bench.left())
    bench.server.script["/x.zip"] = ["ok"]
    assert len(bench()) == 4 and bench.left() == ALL


def zipped(tmp_path, *entries) -> bytes:
    return zip_of(tmp_path / "made.zip", *entries).read_bytes()


def test_archives_that_are_none_and_others_leave_no_dataset(bench, tmp_path):
    whole = bench.server.files["/x.zip"]
    for content, messages in (
        (whole[:-100], ["expected a zip or tar archive, found a zip archive"]),
        (zipped(tmp_path, ("readme.txt", b"x")), ["expected m_expert.h5, m_medium.h5",
                                                  "found readme.txt"]),
        (zipped(tmp_path, ("m_medium.h5", b"x"), ("../../evil", b"x")), ["out of the folder"]),
    ):  # fmt: skip
        bench.server.files["/x.zip"] = content
        error = bench.error(force=True)
        assert all(message in error for message in messages), error
        assert not (bench.folder / "sc2").exists()
        assert bench.left() == ([] if content == whole[:-100] else ALL[:2])


def test_one_bad_quality_does_not_keep_the_others_out(bench, parts, tmp_path):
    files = [(f"m_{quality}.h5", parts[quality][1]) for quality in ("expert", "mixed")]
    bench.server.files["/x.zip"] = zipped(tmp_path, *files, ("m_medium.h5", b"\x89HDF\r\n\x1a\n"))
    error = bench.error()
    assert "m_medium.h5: the HDF5 file is truncated" in error and "Converted: " in error
    assert bench.left() == [*ALL[:2], "sc2/m_expert.h5", "sc2/m_mixed.h5"]
    assert any("left out: medium_replay" in line for line in bench.said)


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
    bench.server.files["/x.zip"] = zipped(tmp_path, *files)
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


def test_a_damaged_ledger(bench):
    path = bench.folder / "downloads/ledger.json"
    path.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"a": 1}', '{"a": {"bytes": 1}}'):
        path.write_text(content)
        assert "ledger.json: the record of what was fetched cannot be read" in bench.error()
    path.unlink()
    assert len(bench()) == 4


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


def test_from_what_was_fetched_by_hand(bench, archive, parts, tmp_path):
    path, folder = tmp_path / "fetched by hand", tmp_path / "unpacked/deeper"
    path.write_bytes(archive)
    assert len(bench(from_file=path)) == 4
    assert bench.left() == ALL[1:] and not bench.server.requests
    assert bench.ledger["drive/all.zip"]["bytes"] == len(archive)
    (bench.folder / CONVERTED[2]).unlink()
    path.write_bytes(archive + b"x")
    assert "has changed" in bench.error(from_file=path)
    folder.mkdir(parents=True)
    file = folder / "M-Medium-Replay.h5"
    file.write_bytes(parts["medium_replay"][1])
    assert len(bench(from_file=folder.parent)) == 1
    assert bench(from_file=file, force=True) == [bench.folder / CONVERTED[2]]
    (folder / "m_medium_replay.h5").write_bytes(b"x")
    assert "is there twice" in bench.error(from_file=folder, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "found empty"),
        (b"PK\x03\x04", "found a zip archive"),
        (PAGE, "found a web page"),
        ("a folder", "found nothing"),
    ],
)
def test_from_something_else(bench, archive, tmp_path, content, message):
    path = tmp_path / "given"
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    error = bench.error(from_file=path)
    assert message in error and "--from-file FILE" in error
    assert bench.left() == [] and not bench.ledger  # what is refused does not enter it


# ----------------------------------------------------------------------------- vaults, AlberDICE


def test_vaults(bench, tmp_path):
    """OG-MARL's archives: `{map}.vlt/{uid}`, with a limit that the vault does not state."""
    data = make_dataset(lengths=(3, 5, 2))
    vault.write(tmp_path / "m.vlt/Good", data)
    described = tmp_path / "m.vlt/Good/metadata.json"
    content = json.loads(described.read_text())
    described.write_text(json.dumps({k: v for k, v in content.items() if k != folders.KEY}))
    shutil.copytree(tmp_path / "m.vlt/Good", tmp_path / "m.vlt/Medium-Replay")
    packed = shutil.make_archive(tmp_path / "vaults", "zip", tmp_path, "m.vlt")
    bench.server.files["/x.zip"] = Path(packed).read_bytes()
    qualities = {"og_marl_good": "m.vlt/Good", "medium_replay": "m.vlt/Medium-Replay"}
    bench.source = replace(bench.source, qualities=qualities, episode_limit=9)
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
    whole, lfs = (
        bench.server.files[place + "obs.npy"],
        b"version https://git-lfs.github.com/spec/v1",
    )
    bench.server.script[place + "obs.npy"], bench.server.files[place + "obs.npy"] = ["ok"], lfs
    assert "expected npy, found a text file" in bench.error()
    bench.server.files[place + "obs.npy"] = whole
    assert bench() == [bench.folder / "bridge/bridge_alberdice_optimal.h5"]
    assert (place + "state.npy", "bytes=1000-") in bench.server.requests
    read = load_dataset(bench.folder / "bridge/bridge_alberdice_optimal.h5")
    assert same(read, load_dataset(published)) and len(bench.ledger) == len(source.files)


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


# ------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_next_call_goes_on(server, tmp_path, monkeypatch, capsys, signum):
    """In the middle of the body: the part stays."""
    known = catalogue()
    source = replace(known["cfcql/2s3z"], address=server.address + "/2s3z.zip")
    monkeypatch.setattr(sources, "catalogue", lambda: known | {source.name: source})
    server.files["/2s3z.zip"], server.script["/2s3z.zip"] = BLOB, ["break 100000", "ok"]
    words = ["download", source.name, "--datasets-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        stop = lambda **_: signal.raise_signal(signum)  # noqa: E731
        patch.setattr(sys.modules["gdown.download"], "_wait_for_retry", stop)
        assert dataset.main(words) == 128 + signum
    assert "the same command goes on" in capsys.readouterr().err
    (part,) = tmp_path.glob("downloads/cfcql/*.part")
    assert part.stat().st_size == 100_000 and not list(tmp_path.rglob("*.h5"))
    assert dataset.main(words) == 2  # it is no archive
    assert server.ranges() == ["bytes=100000-"]


def test_a_dataset_that_is_not_in_the_catalogue(capsys, tmp_path):

    assert dataset.main(["download", "x/y", "--datasets-dir", str(tmp_path)]) == 2
    assert "found no such dataset" in capsys.readouterr().err
    assert dataset.parse(["download", "x/y"]).datasets_dir == PROJECT_ROOT / "datasets"
