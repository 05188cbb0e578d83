"""Questions over several scenarios: which deployment, at which load."""
