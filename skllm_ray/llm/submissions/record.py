"""The record of a purchase: what is bought, and the last that is known of it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Final, Protocol, Self

BEFORE_POST: Final[frozenset[str]] = frozenset({"intent", "refused", "forgotten"})
"""The service holds nothing for certain: submitting is safe."""
STRIKES: Final = 3
"""Looks in a row that must find the same surprise before it is believed."""


class Purchase(Protocol):
    """What is bought: a frozen dataclass, which holds no credential."""

    @property
    def key(self) -> str:
        """A hash of the content, with `copy`: lower-case letters, digits and ``-``, at most 63."""
        ...

    @property
    def service(self) -> str:
        """Who sells it."""
        ...

    @property
    def copy(self) -> int:
        """Which purchase of the same content this is."""
        ...

    @property
    def delete_data(self) -> bool:
        """Whether what was uploaded is removed when it is not needed any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(ABC):
    """What every kind of purchase has in its record. A subclass adds what its service tells."""

    kind: ClassVar[str]
    """What messages and settings call it, such as ``tuning``: a tuning job, the tuning store, ``tuning_store=…``."""
    command: ClassVar[str]
    """The command line's group for it."""

    spec: Any
    """A `Purchase`."""
    state: Any = "intent"
    """``intent``, ``posting``, ``refused``, ``forgotten``, or the service's own."""
    id: str | None = None
    """The service's identifier; None before the service has confirmed it."""
    error: str | None = None
    data: str | None = None
    """The service's name of what was uploaded; None before that, and after it was removed."""
    created_at: float | None = None
    """When the service took it, in seconds since the epoch."""
    posted_at: float | None = None
    """When the one POST was about to be sent."""
    strikes: int = 0
    """Looks in a row that found it gone, or ended without what was bought."""
    nonce: str = ""
    """Tells apart two writers of the same version."""
    version: int = 0
    """The store's version of this record; 0 if it was never stored."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, for messages, such as ``a tuning job of gpt-4.1-mini``."""

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether it will not change any more."""

    @abstractmethod
    def seen(self, found: Any) -> Self:
        """Return the record with what the service tells of it."""

    @classmethod
    @abstractmethod
    def read_spec(cls, told: Any) -> Any:
        """Return the spec that :meth:`to_json` wrote as a part of the record."""

    @property
    def key(self) -> str:
        """The content key."""
        return str(self.spec.key)

    @property
    def service(self) -> str:
        """Who sells it."""
        return str(self.spec.service)

    def next_copy(self) -> Self:
        """Return the intent of a further purchase of the same content."""
        return replace(self, spec=replace(self.spec, copy=self.spec.copy + 1))

    def missed(self) -> Self:
        """Return the record after the service did not know it; some times in a row, and it was deleted."""
        if self.strikes + 1 < STRIKES:
            return replace(self, strikes=self.strikes + 1)
        return replace(self, strikes=0, state="deleted", error="The service does not know this job any more.")

    def to_json(self) -> bytes:
        """Return the record for the store."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return what :meth:`to_json` wrote; raises ``ValueError`` for anything else."""
        told = json.loads(text)
        try:
            return cls(**{**told, "spec": cls.read_spec(told["spec"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the record of a {cls.kind} job: {error}") from None


def known_fields(cls: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this version knows of a record; a later one may have written more."""
    names = {one.name for one in fields(cls)}
    return {name: value for name, value in told.items() if name in names}
