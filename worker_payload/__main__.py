import sys

from worker_payload.cli import main

sys.exit(main())
