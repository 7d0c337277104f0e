"""AlberDICE's datasets: a folder with one `{key}.npy` for each key, and `meta.json`.

`meta.json` is `{buffer_index, episodes_in_buffer, buffer_size}`: the first `episodes_in_buffer`
entries of the arrays are episodes, the rest of the buffer was never written. The keys are the
canonical ones plus `actions_onehot`, which follows from `actions`: it is not read, and made anew
where such a folder is written.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from inspo.offline.formats import folders
from inspo.offline.formats.common import Hints, read_padded
from inspo.offline.offline_dataset import FIELDS, FILLED, FILLED_FIELD, OfflineDataset
from inspo.offline.padded import PaddedSource
from inspo.offline.validation import damaged
from inspo.utils.errors import DatasetError

NAME = "alberdice"
DESCRIPTION = "AlberDICE's folder of {key}.npy and meta.json"
META = "meta.json"
ONEHOT = "actions_onehot"
BLOCK = 64  # episodes padded at a time


# ------------------------------------------------------------------------------------ reading


def recognises(path: Path) -> bool:
    """Whether it is a folder with arrays of this layout."""
    return path.is_dir() and ((path / META).is_file() or (path / "filled.npy").is_file())


def load(path: Path, hints: Hints) -> OfflineDataset:
    """Read the folder; the arrays are mapped, so that only the filled rows come into memory."""
    arrays = {file.stem: _map_array(file) for file in sorted(path.glob("*.npy")) if file.is_file()}
    content = folders.read_json(path / META)
    count = content.get("episodes_in_buffer")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise damaged(f"{path / META}: 'episodes_in_buffer'", "a number of episodes", repr(count))
    for key, array in arrays.items():
        if array.ndim and len(array) < count:
            expected = f"at least {count} episodes, as meta.json says"
            raise damaged(path / f"{key}.npy", expected, len(array))
    written = {key: array[:count] if array.ndim else array for key, array in arrays.items()}
    stated = folders.stated_metadata(content, path / META)
    dataset = read_padded(
        PaddedSource(written, str(path)),
        folders.hints_with(stated, hints),
        metadata=None,
        origin=f"converted from {path.name} (AlberDICE's folder)",
        battle_won=folders.stated_victories(stated, count, path / META),
    )
    return folders.as_stated(dataset, stated, hints, path / META)


def _map_array(path: Path) -> np.memmap[Any, Any]:
    """A `.npy` file as a read-only memory map; arrays of Python objects are refused."""
    try:
        # Not np.load: it would open an archive or a pickle under this name as well.
        array = np.lib.format.open_memmap(path, mode="r")
        size, expected = path.stat().st_size, array.offset + array.nbytes
        if size != expected:
            raise ValueError(f"{size} bytes, expected {expected}")
        return array
    except PermissionError:
        raise DatasetError(f"{path}: no permission to read it. Change its mode or owner.") from None
    except Exception as error:  # numpy parses the head as Python: whatever a parser raises
        raise damaged(path, "a .npy array of numbers", error) from error


# ------------------------------------------------------------------------------------ writing


def write(path: Path, dataset: OfflineDataset, *, overwrite: bool = False) -> None:
    """Write a folder as AlberDICE's buffer saves it, padded with zeros to the limit.

    Our metadata stand in `meta.json` under a key of their own, which its loader does not read.
    """
    facts = dataset.metadata
    n_steps = facts.episode_limit + 1
    layout = {key: (spec.dtype, facts.row_shape(key)) for key, spec in FIELDS.items()}
    layout[ONEHOT] = np.dtype(np.float32), facts.row_shape("avail_actions")
    layout[FILLED] = FILLED_FIELD.dtype, (1,)
    with folders.new_folder(path, overwrite) as folder, contextlib.ExitStack() as stack:
        out = {}
        for key, (dtype, row) in layout.items():
            out[key] = stack.enter_context(open(folder / f"{key}.npy", "wb"))
            # The values follow by plain writes: a map would crash where the disk is full.
            header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(dtype)}
            header |= {"fortran_order": False, "shape": (len(dataset), n_steps, *row)}
            np.lib.format.write_array_header_1_0(out[key], header)
        for first in range(0, len(dataset), BLOCK):
            batch = dataset.episodes(range(first, min(first + BLOCK, len(dataset))), n_steps)
            onehot = np.eye(facts.n_actions, dtype=np.float32)[batch["actions"][..., 0]]
            batch[ONEHOT] = onehot * batch[FILLED][..., None].astype(np.float32)
            for key, values in batch.items():
                out[key].write(values.tobytes())
        meta = {
            "buffer_index": 0,
            "episodes_in_buffer": len(dataset),
            "buffer_size": len(dataset),
            folders.KEY: folders.describe(dataset, facts.content_hash),
        }
        (folder / META).write_text(json.dumps(meta))
