"""``python -m hpc_kjko``: the same program as the ``kjko`` command."""

import sys

from hpc_kjko.cli import main

sys.exit(main())
