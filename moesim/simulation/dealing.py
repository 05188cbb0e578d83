"""Dealing: which requests each station gets, where that depends on nobody."""

from collections.abc import Iterable, Sequence

import numpy as np

from moesim.scenario import Scenario
from moesim.serving.columns import Columns, joined
from moesim.simulation.prefixes import with_block_names
from moesim.simulation.replica import Replica
from moesim.simulation.station import Station


class Dealing:
    """A scenario's known requests, each model's dealt in turn to the stations that have it."""

    def __init__(self, scenario: Scenario, stations: Sequence[Station], requests: Columns) -> None:
        self._scenario = scenario
        self._stations = stations
        self._requests = requests
        self._lone = len({model for station in stations for model in station.models}) == 1
        self._homes: dict[str, list[int]] = {}
        for place, station in enumerate(stations):
            for model in station.models:
                self._homes.setdefault(model, []).append(place)

    def share(self, place: int) -> list[Columns]:
        """Return a station's requests, model by model."""
        parts = []
        for model in self._stations[place].models:
            homes, mine = self._homes[model], self._of_model(model)
            every = slice(homes.index(place), None, len(homes))
            parts.append(mine.take(every) if len(homes) > 1 else mine)
        return parts

    def of(self, models: Iterable[str]) -> Columns:
        """Return all requests of some models, in order of arrival."""
        merged = joined([self._of_model(model) for model in sorted(models)])
        return merged.take(np.lexsort([merged["request_id"], merged["arrival_s"]]))

    def undealt(self) -> Columns:
        """Return all requests as they were drawn, whoever they will go to."""
        return self._named(self._requests, self._stations[0].replicas[0])

    def _of_model(self, model: str) -> Columns:
        """Return a model's requests."""
        requests = self._requests
        mine = requests if self._lone else requests.take(requests.where("model", model))
        station = self._stations[self._homes[model][0]]
        return self._named(mine, station.replicas[station.models.index(model)])

    def _named(self, mine: Columns, replica: Replica) -> Columns:
        """Return requests with their prompts' blocks named, if the replica keeps prefixes."""
        if replica.keeps_prefixes:
            named = with_block_names(mine.frame, self._scenario, replica.cache.block_size)
            return Columns.of(named)
        return mine.without("prefix")
