"""What goes with the claims of a system: tables and plots that have no published counterpart."""

from dataclasses import dataclass

from moesim.reproduction.picture import Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under headings."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annex:
    """A titled part of a report: what it says in sentences, a table, plots."""

    title: str
    says: tuple[str, ...]
    table: Table
    pictures: tuple[Picture, ...] = ()
