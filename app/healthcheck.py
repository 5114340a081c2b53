"""The former address of app.serving.healthcheck: `python -m app.healthcheck` goes on working for one version."""

import sys

from app.serving.healthcheck import main

if __name__ == "__main__":
    sys.exit(main())
