"""The command line of the comparison."""

import sys

from lab.same_results.compare import main

sys.exit(main())
