"""SeaweedFS on loopback, and the fault proxy before it."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "marey", "AWS_SECRET_ACCESS_KEY": "marey-local-only", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "bench"


def ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return found


@contextlib.contextmanager
def server(folder):
    """A server that keeps its data below `folder`; gives its endpoint."""
    weed = Path(os.environ["MAREY_CACHE"]) / "seaweedfs/bin/weed"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    credentials = [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}]
    identity = {"name": "marey", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"]
    at = dict(zip(names, ports(len(names))))
    command = [
        str(weed), "server", "-s3", "-dir", str(folder / "data"), "-s3.config", str(folder / "identities.json"),
        "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-master.telemetry=false", "-s3.autoCreateBucket=false", "-s3.iam=false",
        "-filer.maxMB=1", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=64", "-master.volumeSizeLimitMB=1024",
        f"-filer.localSocket=/tmp/marey-bench-filer-{os.getpid()}.sock", f"-s3.localSocket=/tmp/marey-bench-s3-{os.getpid()}.sock",
        *(f"-{name}={port}" for name, port in at.items()),
    ]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        endpoint = f"http://127.0.0.1:{at['s3.port']}"
        wait(lambda: status(endpoint, "GET") == 403, "the S3 server")
        wait(lambda: status(f"http://127.0.0.1:{at['filer.port']}/buckets/{BUCKET}/", "POST") in (200, 201, 409), "its bucket")
        yield endpoint
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@contextlib.contextmanager
def proxy(upstream, rules):
    """The fault proxy with `rules`; gives its endpoint."""
    program = Path(os.environ["CARGO_TARGET_DIR"]) / "debug/marey-fault-proxy"
    arguments = [arg for rule in rules for arg in ("--rule", rule)]
    process = subprocess.Popen([program, "--upstream", upstream, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def status(url, method):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0


def readable(client, key):
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return bool(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    except (BotoCoreError, ClientError):
        return False


def wait(ready, what):
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: failed to start {what}")
        time.sleep(0.1)


def upload(endpoint, folder):
    """Every dataset below folder/{raw,jpeg}, unless it is there."""
    import boto3
    from botocore.config import Config

    os.environ.update(KEYS)
    client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=8))
    done = folder / "uploaded"
    if done.exists():
        # A server that starts answers before it has found its volumes.
        wait(lambda: readable(client, "raw/marey/dataset.json"), "reading from the S3 server")
        return
    files = [f for kind in ("raw", "jpeg") for f in (folder / kind).rglob("*") if f.is_file()]
    put = lambda f: client.upload_file(str(f), BUCKET, str(f.relative_to(folder)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, files))
    done.touch()
