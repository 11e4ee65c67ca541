"""The types of a spec's addresses. A new key that names a file or a store must have one of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated


class AddressKind(StrEnum):
    """What an address names."""

    MODEL = "model"
    DATA = "data"
    STORE = "store"


ModelAddress = Annotated[str, AddressKind.MODEL]
DataAddress = Annotated[str, AddressKind.DATA]
StoreAddress = Annotated[str, AddressKind.STORE]
