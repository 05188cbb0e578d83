"""The engine that is measured: a mixture-of-experts decoder served for real, in PyTorch."""
