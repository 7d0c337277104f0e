"""AlberDICE's datasets: a folder with one `{key}.npy` for each key, and `meta.json`.

`meta.json` is `{buffer_index, episodes_in_buffer, buffer_size}`: the first `episodes_in_buffer`
entries of the arrays are episodes, the rest of the buffer was never written. The keys are the
canonical ones plus `actions_onehot`, which follows from `actions` and is not read.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from offline.dataset import OfflineDataset
from offline.formats.common import Hints, read_padded
from offline.padded import ArraySource
from utils.errors import DatasetError

NAME = "alberdice"
DESCRIPTION = "AlberDICE's folder of {key}.npy and meta.json"


def recognises(path: Path) -> bool:
    """Whether it is a folder with arrays of this layout."""
    return path.is_dir() and ((path / "meta.json").is_file() or (path / "filled.npy").is_file())


def load(path: Path, hints: Hints) -> OfflineDataset:
    """Read the folder; the arrays are mapped, so that only the filled rows come into memory."""
    arrays = {file.stem: _map_array(file) for file in sorted(path.glob("*.npy")) if file.is_file()}
    n_episodes = _episodes_in_buffer(path)
    for key, array in arrays.items():
        if array.ndim and len(array) < n_episodes:
            raise DatasetError(
                f"{path / (key + '.npy')}: expected at least {n_episodes} episodes, as meta.json "
                f"says, found {len(array)}. The folder is incomplete: fetch it again."
            )
    used = {key: array[:n_episodes] if array.ndim else array for key, array in arrays.items()}
    origin = f"converted from {path.name} (AlberDICE's folder)"
    return read_padded(ArraySource(used, str(path)), hints, metadata=None, origin=origin)


def _map_array(path: Path) -> np.ndarray:
    """A `.npy` file as a read-only memory map; arrays of Python objects are refused."""
    try:
        # Not np.load: it would open an archive or a pickle under this name as well.
        return np.lib.format.open_memmap(path, mode="r")
    except PermissionError:
        raise DatasetError(f"{path}: no permission to read it. Change its mode or owner.") from None
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, OverflowError) as error:
        raise DatasetError(
            f"{path}: not a .npy array of numbers, or truncated ({error}). Fetch it again."
        ) from error


def _episodes_in_buffer(path: Path) -> int:
    """How many episodes the arrays hold, from `meta.json`."""
    file = path / "meta.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{file}: missing. The folder is incomplete: fetch it again.") from None
    except PermissionError:
        raise DatasetError(f"{file}: no permission to read it. Change its mode or owner.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not valid JSON ({error}). Fetch it again.") from error
    count = meta.get("episodes_in_buffer") if isinstance(meta, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise DatasetError(
            f"{file}: 'episodes_in_buffer': expected a number of episodes, found {count!r}. "
            "Fetch it again."
        )
    return count
