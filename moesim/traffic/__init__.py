"""Who asks for what, when: arrival processes, length distributions and traces."""
