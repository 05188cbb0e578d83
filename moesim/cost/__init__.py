"""How long things take: the profile file, the curves read from it, and the iteration's duration."""
