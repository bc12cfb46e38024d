"""`python -m assay_verifiers`: the same as `assay-verify`."""

from __future__ import annotations

import sys

from assay_verifiers.cli import main

if __name__ == "__main__":
    sys.exit(main())
