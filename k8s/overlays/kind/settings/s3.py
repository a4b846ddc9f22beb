"""An S3 server with the bucket `dualview`, in memory: gone with its pod, which is right for a trial and nothing else."""

from threading import Event

import boto3
from moto.server import ThreadedMotoServer

PORT = 9000

server = ThreadedMotoServer(ip_address="0.0.0.0", port=PORT, verbose=False)
server.start()
boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{PORT}",
    region_name="us-east-1",
    aws_access_key_id="any",  # moto takes what comes; who may ask it at all is the NetworkPolicy's
    aws_secret_access_key="any",
).create_bucket(Bucket="dualview")
Event().wait()
