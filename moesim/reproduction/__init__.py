"""Published experiments run as scenarios, and what of them comes out."""
