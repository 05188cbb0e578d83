"""Profiles the engine on this host, and validates predictions against real runs."""
