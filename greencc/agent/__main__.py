"""``python -m greencc.agent COMMAND``."""

import sys

from greencc.agent.main import main

sys.exit(main(sys.argv[1:]))
