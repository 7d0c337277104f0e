"""One file over HTTP: resumed where it broke off, its length checked, never mistaken for a page.

`fetch` fills a partial file; who asked for it gives it its name when its content has been checked.
Beside it stands `{partial}.json`, which says what it is a part of, so that another process can go
on with it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path

from inspo.utils.errors import DatasetError
from inspo.utils.logging import progress_bar

CHUNK = 1 << 16
PAGE_BYTES = 1 << 20  # of a web page, which is read to say what it is
RESERVE = 64 << 20  # bytes of the disk that stay free
GAIN = 1 << 20  # an attempt that brought this much was no failure
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be gone in a minute


class TransferError(Exception):
    """It could not be fetched, and trying again now is no use. The message says why."""


class _Temporary(TransferError):
    """It may work if tried again. wait: seconds, where the server asks for them. offline: the
    network itself seems to be missing."""

    def __init__(self, message: str, wait: float = 0.0, offline: bool = False):
        super().__init__(message)
        self.wait, self.offline = wait, offline


@dataclass(frozen=True)
class Patience:
    """timeout: seconds without a byte. attempts: in a row without progress. pause: seconds after
    the first failure, doubled after each further one up to `longest_pause`."""

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 2.0
    longest_pause: float = 60.0


def fetch(
    address: str,
    partial: Path,
    *,
    patience: Patience | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
    name: str = "",
) -> None:
    """Fill `partial` with what lies at `address`, going on with what it already holds.

    Raises TransferError if it cannot be had, DatasetError if the disk cannot take it. Either way,
    and after Ctrl-C, what has come stays in `partial` for the next call.
    """
    patience = patience or Patience()
    failures = 0
    first = best = _size(partial)
    while True:
        try:
            return _attempt(address, partial, patience.timeout, progress, name)
        except _Temporary as error:
            # Against the best so far: who starts from zero every time makes no progress.
            failures = 1 if _size(partial) - best >= GAIN else failures + 1
            best = max(best, _size(partial))
            # A network that was never there will not come in half a minute; one that went, may.
            attempts = 2 if error.offline and best == first else patience.attempts
            if failures >= attempts:
                raise TransferError(f"{error} ({failures} attempts without success)") from error
            pause = min(patience.pause * 2 ** (failures - 1), patience.longest_pause)
            pause = max(pause, min(error.wait, patience.longest_pause))
            say(f"{error}; trying again in {pause:.0f} s")
            time.sleep(pause)


def discard(partial: Path) -> None:
    """Remove a partial file and what is known about it."""
    for path in (partial, _state_path(partial)):
        path.unlink(missing_ok=True)


# -------------------------------------------------------------------------- what is here already


@dataclass(frozen=True)
class _State:
    """What a partial file is a part of. validator: ETag or date, which a resumed part must have."""

    address: str
    total: int | None
    validator: str | None


def _state_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_state(partial: Path, address: str) -> _State | None:
    """What `partial` is a part of; None if that is unknown, or something else."""
    try:
        state = _State(**json.loads(_state_path(partial).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    known = isinstance(state.total, int) and _size(partial) <= state.total
    return state if known and state.address == address else None


def _write_state(partial: Path, state: _State) -> None:
    _state_path(partial).write_text(json.dumps(asdict(state)))


# ------------------------------------------------------------------------------------ one attempt


def _attempt(address: str, partial: Path, timeout: float, progress: bool, name: str) -> None:
    """One connection; returns when `partial` is whole."""
    state = _read_state(partial, address)
    have = _size(partial) if state else 0
    if state and have == state.total:
        return
    with _open(address, partial, have, state, timeout) as response:
        if _is_page(response):
            page = _network(response.read, PAGE_BYTES)
            confirmed = confirmed_address(page, response.geturl())
            if confirmed is None:
                raise TransferError(_describe_page(page))
            with _open(confirmed, partial, have, state, timeout) as second:
                if _is_page(second):
                    raise TransferError(_describe_page(_network(second.read, PAGE_BYTES)))
                return _receive(second, address, partial, have, state, progress, name)
        _receive(response, address, partial, have, state, progress, name)


def _receive(response, address, partial, have, state, progress, name) -> None:
    """Append the body of an answer to `partial`, or put it in its place; check its length."""
    have, total = _agree(response, partial, have, state)
    _check_disk(partial, (total or 0) - have)
    if not have:
        with _local(partial):
            discard(partial)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = None  # a weak one does not promise the same bytes
        with _local(partial):
            _write_state(partial, _State(address, total, validator))
    bar = progress_bar(total or 0, enabled=progress, initial=have, desc=name, unit="B")
    try:
        have = _copy(response, partial, have, bar)
    finally:
        bar.close()
    if total is not None and have > total:
        discard(partial)
        raise TransferError(f"the server announced {total} bytes and sent more")
    if total is not None and have < total:
        raise _Temporary(f"the connection ended after {have} of {total} bytes")


def _copy(response, partial: Path, have: int, bar) -> int:
    """Append the body to `partial`; returns its size."""
    with _local(partial), open(partial, "ab") as file:
        while block := _network(response.read1, CHUNK):
            if not have and looks_like_html(block):
                discard(partial)
                raise TransferError(_describe_page(block))
            file.write(block)
            have += len(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    return have


def _agree(response, partial: Path, have: int, state: _State | None) -> tuple[int, int | None]:
    """(how many bytes of `partial` stay, size of the whole), as the answer has it."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise TransferError(f"the server packed the file ({encoding}) although nobody asked it to")
    if response.status == 200:  # all of it: the server ignores ranges, or has another file now
        return 0, _number(response.headers.get("Content-Length"))
    if response.status != 206:
        raise TransferError(f"the server answered with HTTP status {response.status}")
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    first, _, total = map(int, given.groups()) if given else (-1, -1, -1)
    if first != have or state is None or total != state.total:
        discard(partial)
        raise _Temporary("the server did not go on where the file broke off; it starts again")
    return have, total


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _check_disk(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed + RESERVE > free:
        raise DatasetError(
            f"{partial.parent}: {needed / 1e6:.0f} MB are to come, but only {free / 1e6:.0f} MB "
            "are free. Make room or choose another folder with --datasets-dir; the same command "
            "goes on."
        )


# ----------------------------------------------------------------------------------- the network


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from an encrypted address to a plain one or to a file."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        before, after = (urllib.parse.urlsplit(u).scheme for u in (req.full_url, newurl))
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise TransferError(f"the server sends to an unsafe address: {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _open(address: str, partial: Path, have: int, state: _State | None, timeout: float):
    """The answer to a request for what follows the first `have` bytes."""
    headers = {"User-Agent": "offline-marl-datasets/1", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state and state.validator:
            headers["If-Range"] = state.validator
    request = urllib.request.Request(address, headers=headers)
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = _network(opener.open, request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            discard(partial)
            raise _Temporary("the server has less than what is here; it starts again") from error
        raise _from_status(error) from error
    with response:
        yield response


def _from_status(error: urllib.error.HTTPError) -> TransferError:
    """The answer was no success."""
    what = f"the server answered with HTTP status {error.code} ({error.reason})"
    if error.code in TEMPORARY:
        return _Temporary(what, wait=_number(error.headers.get("Retry-After")) or 0)
    return TransferError(what)


def _network(call: Callable, *args, **kwargs):
    """`call(...)`, with everything that a network can do to it as _Temporary."""
    try:
        return call(*args, **kwargs)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        offline = isinstance(error.reason, socket.gaierror)
        raise _Temporary(_reason(error.reason), offline=offline) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Temporary(_reason(error)) from error


def _reason(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return "the host's name is not found; is there a network?"
    if isinstance(error, TimeoutError):
        return "the server does not answer any more (timeout)"
    if isinstance(error, http.client.HTTPException):
        return f"the connection broke off ({type(error).__name__})"
    return f"no connection ({error})"


@contextlib.contextmanager
def _local(path: Path):
    """What the disk does to us, in words."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}). Make room, correct the "
            "folder's mode, or choose another one with --datasets-dir; the same command goes on."
        ) from error


# ------------------------------------------------------------------------------- pages, not files


def looks_like_html(head: bytes) -> bool:
    """Whether a file that begins like this is a web page."""
    return head.lstrip()[:256].lower().startswith((b"<!doctype html", b"<html"))


def _is_page(response) -> bool:
    return response.headers.get_content_type() in ("text/html", "application/xhtml+xml")


def _describe_page(page: bytes) -> str:
    """A web page came with status 200: what it says, in one line."""
    title = re.search(rb"<title[^>]*>(.*?)</title>", page, re.I | re.S)
    said = " ".join(title[1].decode(errors="replace").split())[:120] if title else "no title"
    return f"the server sent a web page ('{said}') instead of the file"


class _Form(HTMLParser):
    """The form with which Google Drive asks for a confirmation of large files."""

    def __init__(self):
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "form" and attributes.get("id") == "download-form":
            self.action, self._inside = attributes.get("action"), True
        elif tag == "input" and self._inside and attributes.get("name"):
            self.fields[attributes["name"]] = attributes.get("value") or ""

    def handle_endtag(self, tag):
        if tag == "form":
            self._inside = False


def confirmed_address(page: bytes, address: str) -> str | None:
    """Where Google Drive's page "cannot scan this file for viruses" leads to, if it is that page.

    Only to the page's own host: a page must not send us anywhere else.
    """
    form = _Form()
    form.feed(page.decode(errors="replace"))
    if not form.action or "confirm" not in form.fields:
        return None
    target = urllib.parse.urlsplit(urllib.parse.urljoin(address, form.action))
    here = urllib.parse.urlsplit(address)
    if (target.scheme, target.netloc) != (here.scheme, here.netloc):
        return None
    return target._replace(query=urllib.parse.urlencode(form.fields)).geturl()
