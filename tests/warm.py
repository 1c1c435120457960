"""Interpreters for scripts, on Linux sooner: each is forked from one that has imported much and computed nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SERVER = """
import json, os, sys, traceback
import mlx_depth.checkpoints.resolve
from huggingface_hub import HfApi, snapshot_download

for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]  # it reads its environment when it is imported: each script imports it, but not what it needs

def run(job):
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for stream, file in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(file, os.O_RDWR), stream)
    sys.argv = ["-c", *job["arguments"]]
    try:
        exec(job["code"], {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Interpreters:
    """``with Interpreters(scratch) as interpreters``: ``run`` is ``python -c`` with modules imported beforehand."""

    def __init__(self, scratch: Path) -> None:
        self.files = {"stdout": scratch / "stdout", "stderr": scratch / "stderr"}
        self.server: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Interpreters":
        if sys.platform == "linux":  # macOS' own libraries may not be used after a fork
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.server is not None:
            self.server.communicate()

    def run(self, code: str, *arguments: str, env: Mapping[str, str], cwd: Path) -> Done:
        """Run a script that ends by itself."""
        if self.server is None:
            command = [sys.executable, "-c", code, *arguments]
            done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
            return Done(done.returncode, done.stdout, done.stderr)
        for file in self.files.values():
            file.write_bytes(b"")
        files = {name: os.fspath(file) for name, file in self.files.items()}
        job = {"code": code, "arguments": arguments, "env": dict(env), "cwd": os.fspath(cwd), **files}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(job), file=self.server.stdin, flush=True)
        status = int(self.server.stdout.readline())
        return Done(status, *(self.files[name].read_text() for name in ("stdout", "stderr")))
