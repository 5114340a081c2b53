"""`python -m app.serving.healthcheck` ends with 0 when the service beside it is ready: an image has no curl.


It runs every few seconds, so it reads GRAFT_HOST and GRAFT_PORT itself: importing the settings costs half a second.
"""

import http.client
import os
import sys

ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses to listen on, not to ask
SECONDS = 2


def main() -> int:
    host = os.environ.get("GRAFT_HOST", "")
    connection = http.client.HTTPConnection(
        ANYWHERE.get(host, host), int(os.environ.get("GRAFT_PORT") or 8000), timeout=SECONDS
    )
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read().decode()
    except OSError as error:
        print(f"graft: no answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(said)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
