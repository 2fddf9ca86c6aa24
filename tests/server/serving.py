"""What the scripts in this folder share: a running `weir serve`, and Python packages they need."""
import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED = 77  # ctest's SKIP_RETURN_CODE


def skip(why):
    print("skipped:", why)
    sys.exit(SKIPPED)


def venv(name, requirements, *, hashes):
    """The Python of a virtual environment in .cache that has |requirements| (a file), made if it is
    not there. Ends the program as skipped when PyPI cannot be reached."""
    pins = pathlib.Path(requirements).read_bytes()
    folder = ROOT / ".cache" / f"{name}-{hashlib.sha256(pins).hexdigest()[:12]}"
    python = folder / "bin/python"
    done = folder / "complete"
    if done.exists():
        return python
    print(f"installing {pathlib.Path(requirements).name} into {folder}", file=sys.stderr)
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], capture_output=True,
                          text=True)
    if made.returncode != 0:
        skip("no virtual environment can be made (Debian: python3-venv): " + made.stdout[-300:])
    pip = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                          *(["--require-hashes", "--only-binary=:all:"] if hashes else []), "-r",
                          requirements], capture_output=True, text=True)
    if "HASHES" in pip.stderr:  # somebody changed a package: no reason to go on without the test
        sys.exit("a package is not the one that was pinned:\n" + pip.stderr[-2000:])
    if pip.returncode != 0:
        skip("PyPI cannot be reached, or lacks a package of "
             f"{requirements}:\n{pip.stderr.strip()[-600:]}")
    done.touch()
    return python


def get(url):
    return urllib.request.urlopen(url, timeout=30)


def serve(weir, model, *options):
    """The command of `weir serve` on a free port."""
    return [weir, "serve", "-m", model, "--port", "0", *options]


class Server:
    """A running server, which says where it listens. Used with `with`, whose end stops it."""

    def __init__(self, command, environment=None):
        self.log = tempfile.TemporaryFile("w+")
        variables = {k: v for k, v in os.environ.items() if not k.startswith("WEIR_")}
        variables.update(environment or {})
        self.process = subprocess.Popen(
            [str(part) for part in command], env=variables, stdout=subprocess.PIPE,
            stderr=self.log, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"at (http://\S+)$", line.strip())
        if not found:
            self.process.wait(30)
            sys.exit(f"the server did not start: {line}{self.log_text()}")
        self.url = found[1]
        self.port = int(self.url.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def __del__(self):
        self.log.close()
        self.process.stdout.close()

    def log_text(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def metrics(self):
        """Each sample of /metrics by its name with its labels, and the sum over labels by name."""
        samples = {}
        with get(self.url + "/metrics") as reply:
            for line in reply.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    samples[name] = float(value)
                    bare = name.split("{")[0]
                    if bare != name:
                        samples[bare] = samples.get(bare, 0) + float(value)
        return samples

    def idle_metrics(self, seconds=10):
        """Those of the server when it has no request any more, or after |seconds|."""
        end = time.monotonic() + seconds
        while True:
            samples = self.metrics()
            if samples["weir_requests_unfinished"] == 0 or time.monotonic() > end:
                return samples
            time.sleep(0.02)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_bytes(self):
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, seconds=30):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
