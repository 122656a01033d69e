"""Scripts that measure, and dated results."""

import os

# Set before torch is imported: its idle threads would otherwise spin and take the cores from whatever runs next,
# jax or torch itself, whose two threads have been seen spinning on one core, 3 to 10 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
