"""Measures the engine and its host, writes profiles, validates predictions."""

import engine as engine  # before torch is loaded: how its threads wait for each other
