"""``python -m hpc_kjko``: the same program as the ``kjko`` command."""

import gc
import sys


def start() -> int:
    """Run the command line and return its exit code. Ctrl-C while torch is being loaded prints no traceback."""
    try:
        from hpc_kjko.cli.main import main
    except KeyboardInterrupt:
        return 130
    code = main()
    gc.freeze()  # saves a second: otherwise Python searches all objects of torch for garbage when it exits
    return code


if __name__ == "__main__":
    sys.exit(start())
