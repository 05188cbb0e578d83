"""A family: a base that was trained on all domains, and a variant of it fine-tuned on each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.model.loading import load_model, random_model, save_model
from engine.quality.corpus import Domain
from engine.quality.training import Course, train
from engine.variants.distances import Tell
from moesim.facts.models import ModelSpec

BASE = "base"
"""What the base's folder is called; those of the variants are called as their domains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The checkpoint folders of a base and its variants, and what each variant is a variant for."""

    base: Path
    domains: tuple[Domain, ...]

    @property
    def folders(self) -> dict[str, Path]:
        """The variants' folders by name."""
        return {domain.name: self.base.parent / domain.name for domain in self.domains}

    def domain(self, name: str) -> Domain:
        """Return a variant's domain."""
        return next(domain for domain in self.domains if domain.name == name)


def raise_family(
    spec: ModelSpec,
    folder: Path,
    domains: Sequence[Domain],
    courses: tuple[Course, Course],
    seed: int,
    tell: Tell,
) -> Family:
    """Train what is not in `folder` yet: the base by the first course, variants by the second."""
    family = Family(base=folder / BASE, domains=tuple(domains))
    whole = 1 + len(domains)
    if not family.base.exists():
        model = random_model(spec, seed)
        texts = [domain.training for domain in domains]
        train(model, texts, courses[0], seed, lambda share: tell(share / whole, "training base"))
        save_model(model, family.base)
    for index, domain in enumerate(domains, start=1):
        if not family.folders[domain.name].exists():
            _fine_tune(family, domain, courses[1], seed + index, tell, index / whole)
    return family


def _fine_tune(
    family: Family, domain: Domain, course: Course, seed: int, tell: Tell, done: float
) -> None:
    whole = 1 + len(family.domains)
    model = load_model(family.base)
    doing = f"training {domain.name}"
    train(model, [domain.training], course, seed, lambda share: tell(done + share / whole, doing))
    save_model(model, family.folders[domain.name])
