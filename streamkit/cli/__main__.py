"""`python -m streamkit.cli`, the same as `streamkit`."""

import sys

from streamkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
