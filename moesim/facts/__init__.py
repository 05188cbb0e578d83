"""What GPUs and models are: hardware, models, memory, and the catalogue of shipped data."""
