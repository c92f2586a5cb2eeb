"""``python -m medduet``."""

import sys

from medduet.cli import main

sys.exit(main())
