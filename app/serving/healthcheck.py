"""`python -m app.serving.healthcheck` exits with 0 if the service is ready: container images have no curl.

It runs every few seconds, so it reads GRAFT_HOST and GRAFT_PORT itself: importing the settings takes half a second.
"""

import http.client
import os
import sys

WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses to listen on → addresses to connect to
TIMEOUT_S = 2


def main() -> int:
    host = os.environ.get("GRAFT_HOST", "")
    connection = http.client.HTTPConnection(
        WILDCARDS.get(host, host), int(os.environ.get("GRAFT_PORT") or 8000), timeout=TIMEOUT_S
    )
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read().decode()
    except OSError as error:
        print(f"graft: no answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(text)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
