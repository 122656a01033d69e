"""Scripts that measure, and dated results."""

import os

# Set before torch is imported: its idle threads would otherwise spin and take the cores from whatever runs
# next; two of them have been seen on one core, 3 to 10 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
