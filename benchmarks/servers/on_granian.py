"""The naive service on granian, a server in Rust, as its documentation has it: one worker."""

from granian import Granian
from granian.constants import Interfaces
from graph import port_and_bundle

if __name__ == "__main__":
    port, _ = port_and_bundle()
    Granian("naive:app", address="127.0.0.1", port=port, interface=Interfaces.ASGI, workers=1, log_access=False).serve()
