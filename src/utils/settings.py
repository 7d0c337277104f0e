"""The configuration of one run, as the program reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inspo.utils.errors import ConfigError


class MissingKey(ConfigError, AttributeError):
    """A key that code reads and no file declares, as in an algorithm's file that lacks `lr`."""


class Settings(Mapping[str, Any]):
    """All keys of one run, as attributes and as a mapping; read-only.

    Groups of keys (`env_args`, `behaviour`, ...) are Settings too. The facts that only the data or
    the environment know (`n_agents`, `device`, ...) are attributes beside the keys, added once by
    `with_facts`; they are no part of the mapping, nor of what is recorded.

    The keys are declared in `config/*.yaml`; `settings.pyi`, written from them, tells the type
    checker.
    """

    def __init__(self, values: Mapping[str, Any], facts: Mapping[str, Any] | None = None):
        groups = {k: Settings(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        object.__setattr__(self, "_values", groups)
        object.__setattr__(self, "_facts", dict(facts or {}))

    def with_facts(self, **facts: Any) -> Settings:
        """The same configuration, with further facts beside it."""
        return Settings(self._values, {**self._facts, **facts})

    def as_dict(self) -> dict[str, Any]:
        """The keys alone, as plain nested dictionaries."""
        return {k: v.as_dict() if isinstance(v, Settings) else v for k, v in self._values.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is being copied or unpickled
            raise AttributeError(name)
        for source in (self._values, self._facts):
            if name in source:
                return source[name]
        raise MissingKey(
            f"this run's configuration has no key '{name}', which its code reads: declare it in "
            "the YAML file of the algorithm or of the environment (src/config/)"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"the configuration of a run is read-only: {name}={value!r}")

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self.as_dict()!r})"
