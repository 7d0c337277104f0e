"""A list of networks of one class, which the type checker knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ListOf(nn.ModuleList, Generic[M]):
    """`nn.ModuleList`, whose entries are of class `M`."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __getitem__(self, index: int) -> M: ...
        @overload
        def __getitem__(self, index: slice) -> ListOf[M]: ...
        def __getitem__(self, index: int | slice) -> M | ListOf[M]: ...

        def __iter__(self) -> Iterator[M]: ...
