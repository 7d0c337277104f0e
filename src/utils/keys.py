"""Which keys of a configuration may differ between two runs that are one result."""

from __future__ import annotations

MAY_DIFFER_RESUMED = {
    "checkpoint_path",
    "collect.path",
    "env_max_failures",
    "env_timeout",
    "keep_checkpoints",
    "label",
    "load_step",
    "local_results_path",
    "resume",
    "save_model_interval",
    "torch_threads",
    "use_progress_bar",
    "use_tensorboard",
}


def may_differ_compared(key: str) -> bool:
    """Whether runs that differ in this dotted key may still be averaged and compared.

    `dataset.path` is compared by the file's name; that is the caller's to do.
    """
    return key in MAY_DIFFER_RESUMED or key == "datasets_dir"


def may_differ_resumed(key: str) -> bool:
    """Whether a resumed run may have another value of this dotted key than before."""
    return key in MAY_DIFFER_RESUMED
