"""Offline data: read, validate, annotate with the behaviour policies, sample."""

from inspo.offline.formats import load_dataset
from inspo.offline.formats.canonical_writer import CanonicalWriter, write_dataset
from inspo.offline.inspection import DatasetStatistics, compute_statistics
from inspo.offline.offline_dataset import DatasetMetadata, OfflineDataset
from inspo.offline.validation import (
    Violation,
    check_matches,
    differing_settings,
    require_valid,
    validate,
)

__all__ = [
    "CanonicalWriter",
    "DatasetMetadata",
    "DatasetStatistics",
    "OfflineDataset",
    "Violation",
    "check_matches",
    "compute_statistics",
    "differing_settings",
    "load_dataset",
    "require_valid",
    "validate",
    "write_dataset",
]
