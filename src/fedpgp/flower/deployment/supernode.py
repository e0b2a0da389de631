"""Flower's SuperNode, as a process that ends when it has given up.

Flower's own stays: its main thread ends, as when a handshake of TLS is cut twice, a thread of its servers goes on, and
nobody starts it again. `python -m fedpgp.flower.deployment.supernode` takes the options of flower-supernode.
"""

import os
import sys
import traceback

from flwr.supernode.cli import flower_supernode


def main() -> None:
    code = 1
    try:
        flower_supernode()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
