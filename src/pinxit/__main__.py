"""`python -m pinxit`: the command line."""

import sys

from pinxit.cli import main

sys.exit(main())
