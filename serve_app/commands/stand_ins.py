"""`seedvc serve --stand-ins`: Redis and S3 on this machine for as long as it serves, to try what a cluster has."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from serve_app.commands import UserMistake
from serve_app.commands.serve_config import APPLICATION

REDIS = "redis-server"
BUCKET, REGION = "voices", "us-east-1"
START_TIMEOUT_S = 20.0
INGRESSES = 2
"""So that one may go, and its calls come back on the other."""


class StandIns:
    """Both servers, on free ports of the loopback interface. What they hold goes with them."""

    def __init__(self) -> None:
        from serve_app.instance import free_port

        if shutil.which(REDIS) is None:
            raise UserMistake(
                f"{REDIS} is not installed, which --stand-ins starts (on Debian: apt-get install {REDIS})"
            )
        if find_spec("moto") is None or find_spec("flask_cors") is None:
            raise UserMistake("the S3 server of --stand-ins is not installed: pip install 'seedvc-serve[standins]'")
        self._redis_port, self._s3_port = free_port(), free_port()
        self._password = secrets.token_urlsafe(24)

    def put_into(self, tree: dict[str, Any]) -> None:
        """Points a Serve config at them, and gives it a second ingress replica."""
        for application in tree["applications"]:
            if application["import_path"] != APPLICATION:
                continue
            application["args"] = (application.get("args") or {}) | {
                "voices": f"s3://{BUCKET}?endpoint={self._s3_url}&region={REGION}",
                "sessions": f"redis://127.0.0.1:{self._redis_port}",
            }
            for deployment in application.get("deployments") or ():
                if deployment["name"] == "Ingress" and deployment.get("autoscaling_config"):
                    deployment["autoscaling_config"] |= {"min_replicas": INGRESSES, "max_replicas": INGRESSES}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both servers, and what reaches them in the environment, from which Ray's processes take it."""
        import boto3
        from moto.server import ThreadedMotoServer

        from configs.places import REDIS_PASSWORD_ENV, REDIS_USERNAME_ENV
        from serve_app.instance import environment

        keys = {
            "AWS_ACCESS_KEY_ID": "stand-in",
            "AWS_SECRET_ACCESS_KEY": "stand-in",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        redis = redis_process(self._redis_port, self._password)
        s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=self._s3_port)
        try:
            _wait_listening(redis, self._redis_port)
            s3.start()
            with environment({**keys, REDIS_USERNAME_ENV: None, REDIS_PASSWORD_ENV: self._password}):
                boto3.client("s3", endpoint_url=self._s3_url, region_name=REGION).create_bucket(Bucket=BUCKET)
                yield
        finally:
            redis.kill()
            redis.wait()
            s3.stop()

    @property
    def _s3_url(self) -> str:
        return f"http://127.0.0.1:{self._s3_port}"


def redis_process(port: int, password: str = "") -> subprocess.Popen[bytes]:
    """A Redis on loopback that keeps nothing on disk.

    Its settings go by a pipe, so that the password is in no list of processes; Ctrl-C ends it last.
    """
    settings = ["bind 127.0.0.1", f"port {port}", 'save ""', "appendonly no"]
    if password:
        settings.append(f"requirepass {password}")
    process = subprocess.Popen(
        [REDIS, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    with process.stdin as told:
        told.write("\n".join(settings).encode())
    return process


def _wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise UserMistake(f"{REDIS} does not start") from error
            time.sleep(0.05)
