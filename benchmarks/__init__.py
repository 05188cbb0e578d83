"""What is measured beside the tests: speed, kernels, the GPU queue."""
