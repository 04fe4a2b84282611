"""``python -m hpc_kjko``: the same program as the ``kjko`` command."""

import gc
import sys


def start() -> int:
    """Run the command line; an interrupt while torch is still being loaded is no traceback."""
    try:
        from hpc_kjko.cli.main import main
    except KeyboardInterrupt:
        return 130
    code = main()
    gc.freeze()  # else Python looks through all of torch for garbage before it ends: a second
    return code


if __name__ == "__main__":
    sys.exit(start())
