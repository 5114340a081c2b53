"""An object storage on this machine, for tests, with a bucket of the images below a folder: prints its address."""

import os
import sys
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
storage = boto3.client("s3")
storage.create_bucket(Bucket="bucket")
top = Path(sys.argv[1])
for path in top.rglob("*.png"):
    storage.put_object(Bucket="bucket", Key=f"some photos/{path.relative_to(top)}", Body=path.read_bytes())
print(os.environ["AWS_ENDPOINT_URL"], flush=True)
sys.stdin.read()
server.stop()
