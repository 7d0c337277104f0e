"""One file from the network: libraries fetch it, and what they raise becomes one sentence.

`gdown` fetches (Google Drive's questions, resume, retries, lengths); `huggingface_hub` says which
commit a revision of a data set is, and the SHA-256 of a file there.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from inspo.utils.errors import DatasetError
from inspo.utils.phases import progress_bar

TIMEOUT = 30.0  # seconds without a byte
RETRIES = 5  # of one call, each goes on where the last broke off
PAUSE = 5.0  # seconds before a busy server is asked again
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be gone in a minute
RESERVE = 64 << 20  # bytes of the disk that stay free

HUGGING_FACE = "https://huggingface.co"
HUB_FILE = re.compile(r"(https?://[^/]+)/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

REASONS = {
    r"NameResolution|Name or service not known|name resolution": "the host's name is not found: "
    "there is no network, or it needs a proxy",
    r"[Tt]imed out|[Tt]imeout": "the server does not answer any more (timeout)",
    r"Connection refused|NewConnectionError": "no connection to the server",
}


def fetch(address: str, path: Path, *, log: Callable[[str], None], progress: bool) -> str | None:
    """Fetch what lies at `address` to `path`; returns the SHA-256 that its host states, if any.

    What has come stays in `{path}????????.part`, and the next call goes on with it. Raises
    DatasetError: one sentence on why it cannot be had.
    """
    try:
        for attempt in range(RETRIES + 1):
            try:
                commit_address, sha256 = at_commit(address)
                _download(commit_address, path, progress)
                return sha256
            except Exception as error:
                if attempt == RETRIES or _status(error) not in BUSY:
                    raise
                log(f"{_reason(error)}; trying again in {PAUSE:.0f} s")
                time.sleep(PAUSE)
    except DatasetError:
        raise
    except Exception as error:  # whatever the libraries, the network and the disk raise
        kept = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*.part"))
        goes_on = f" {kept / 1e6:.1f} MB are here; the same command goes on there." if kept else ""
        raise DatasetError(f"{address}: cannot be fetched: {_reason(error)}.{goes_on}") from error
    return None


def at_commit(address: str) -> tuple[str, str | None]:
    """An address on the hub at the commit that its revision names now, and the SHA-256 there."""
    match = HUB_FILE.fullmatch(address)
    if not match:
        return address, None
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    host, repository, revision, file = match.groups()
    endpoint = None if host == HUGGING_FACE else host  # None: or a mirror, HF_ENDPOINT

    def url(at: str) -> str:
        return hf_hub_url(repository, file, repo_type="dataset", revision=at, endpoint=endpoint)

    facts = get_hf_file_metadata(url(revision), timeout=TIMEOUT, endpoint=endpoint)
    stated = facts.etag if re.fullmatch(r"[0-9a-f]{64}", facts.etag or "") else None
    return url(facts.commit_hash or revision), stated


def _download(address: str, path: Path, progress: bool) -> None:
    import gdown

    bar = progress_bar(0, enabled=progress, desc=path.name, unit="B")

    def advance(done: int, total: int | None) -> None:
        if total is not None and total != bar.total:
            bar.total = total
            free = shutil.disk_usage(path.parent).free
            if total - done + RESERVE > free:
                raise DatasetError(
                    f"{path.parent}: {(total - done) / 1e6:.0f} MB are to come, but only "
                    f"{free / 1e6:.0f} MB are free. Make room or choose another folder with "
                    "--datasets-dir; the same command goes on."
                )
        bar.update(done - bar.n)

    with bar:
        gdown.download(
            address,
            str(path),
            quiet=True,
            use_cookies=False,
            resume=True,
            timeout=TIMEOUT,
            retries=RETRIES,
            progress=advance,
        )


def _status(error: BaseException) -> int | None:
    """The HTTP status, if that is what went wrong."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _reason(error: BaseException) -> str:
    if (status := _status(error)) is not None:
        return f"the server answered with HTTP status {status}"
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern, reason in REASONS.items():
        if re.search(pattern, text):
            return reason
    return text[:200].rstrip(".")
