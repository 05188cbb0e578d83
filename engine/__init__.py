"""A mixture-of-experts inference engine in PyTorch.

Its threads sleep while they wait for each other, unless the environment says otherwise: by default
they spin, and where another process has one of their cores every matrix product then takes some
scheduler's slice. On two cores with a competitor a step of `demo-moe` took 45 ms in place of 400 to
1,150, and alone as long as before (16 ms). Set here, since OpenMP looks when torch is loaded.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
