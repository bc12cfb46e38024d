"""`python -m assay_trainer`: the same as `assay-train`."""

from __future__ import annotations

import sys

from assay_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
