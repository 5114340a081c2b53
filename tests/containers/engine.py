"""A Docker engine of our own where Docker Hub cannot be reached: daemon, plugins, and stand-ins for three images.

The stand-ins are Debian's: its Python under the name that the Dockerfile asks for, its Prometheus under the name that
the compose file asks for. All of it lies in one work folder, and ends with `close`.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

MIRROR = re.compile(r"^(?:URIs:|deb(?: \[.*\])?)\s+(https?://\S+)", re.MULTILINE)
BASE, BASE_PYTHON = "bookworm", "3.11"  # what the stand-in for Python is made of
PLUGINS = "trixie"  # the first Debian that has both plugins
PYTHON_PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = {"docker.io": "dockerd", "debootstrap": "debootstrap"}


class NoEngineError(Exception):
    """Why no engine can run here."""


def sh(*command: str | Path, **options: object) -> str:
    """Its standard output; what it says on standard error is told when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return str(done.stdout)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """What pip asks for is of no interest."""


class Engine:
    """`with Engine() as engine`: `engine.docker("run", …)` talks to a daemon that nobody else uses."""

    def __init__(self) -> None:
        _require_a_fit_machine()
        self.work = Path(tempfile.mkdtemp(prefix="graft-containers-"))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))},
            "DOCKER_HOST": f"unix://{self.work}/docker.sock",
            "DOCKER_CONFIG": str(self.work / "config"),
        }
        self._daemon: subprocess.Popen[bytes] | None = None
        self._downloads = self.work / "downloads"
        self._downloads.mkdir()

    def __enter__(self) -> "Engine":
        try:
            self._install_plugins()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def docker(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        return sh("docker", *arguments, env={**self.environment, **(environment or {})}, cwd=cwd)

    def close(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            try:
                self._daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        with open("/proc/self/mounts") as mounts:
            inside = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{self.work}/")]
        for mount in reversed(inside):
            subprocess.run(["umount", mount], check=False)
        subprocess.run(["ip", "link", "delete", _bridge(self.work)], capture_output=True, check=False)
        shutil.rmtree(self.work, ignore_errors=True)

    def import_python(self, tag: str) -> None:
        """Debian's Python as an image of that name, with the certificates of this machine."""
        root = self.work / "base"
        root.mkdir()
        sh("mount", "-t", "tmpfs", "-o", "dev,suid", "tmpfs", root)
        packages = "--include=python3,python3-venv,ca-certificates"
        sh("debootstrap", "--variant=minbase", packages, BASE, root, _mirror())
        own = Path("/usr/local/share/ca-certificates")
        if own.is_dir():
            shutil.copytree(own, root / str(own)[1:], dirs_exist_ok=True)
            sh("chroot", root, "update-ca-certificates")
        for found in (root / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
            found.unlink()
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for dropped in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(root / dropped, ignore_errors=True)
        self._import(root, tag, PYTHON_PATH, "LANG=C.UTF-8")
        sh("umount", root)

    def import_prometheus(self, base: str, tag: str) -> Path:
        """Debian's Prometheus on that base, under that name; its promtool, unpacked on this machine."""
        root = self._unpack("prometheus", BASE)
        context = self.work / "prometheus"
        (context / "bin").mkdir(parents=True)
        shutil.copy(root / "usr/bin/prometheus", context / "bin")
        (context / "Dockerfile").write_text(
            f"FROM {base}\nCOPY bin /bin\nRUN mkdir /prometheus && chown 65534 /prometheus\n"
            'USER 65534\nVOLUME /prometheus\nENTRYPOINT ["/bin/prometheus"]\n'
        )
        self.build(context, tag)
        return root / "usr/bin/promtool"

    def build(self, context: Path, tag: str, *options: str) -> None:
        # It needs an index of packages, and this daemon leaves the packet filter alone: its bridges lead nowhere.
        self.docker("buildx", "build", "--network", "host", "--load", "-t", tag, *options, context)

    @contextlib.contextmanager
    def index_of(self, requirement: str) -> Iterator[str]:
        """The address of an index with the build of one package that this machine's pip finds, if only on its disk."""
        name = requirement.partition("=")[0]
        folder = self._downloads / "index"
        wanted = ["--no-deps", "--only-binary", ":all:", "--python-version", BASE_PYTHON]
        sh(sys.executable, "-m", "pip", "download", "--quiet", *wanted, "--dest", folder / name, requirement)
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
            Thread(target=server.serve_forever).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()

    def megabytes(self, tag: str) -> float:
        """Unpacked."""
        return int(self.docker("image", "inspect", "-f", "{{.Size}}", tag)) / 1e6

    def inspect(self, container: str) -> dict[str, object]:
        [found] = json.loads(self.docker("inspect", container))
        return dict(found)

    def _import(self, root: Path, tag: str, *environment: str) -> None:
        settings = [part for one in environment for part in ("-c", f"ENV {one}")]
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
            sh("docker", "import", *settings, "-", tag, env=self.environment, stdin=packed.stdout)

    def _install_plugins(self) -> None:
        folder = self.work / "config/cli-plugins"
        folder.mkdir(parents=True)
        for package in ("docker-compose", "docker-buildx"):
            for plugin in self._unpack(package, PLUGINS).glob("usr/libexec/docker/cli-plugins/*"):
                (folder / plugin.name).symlink_to(plugin)

    def _start(self) -> None:
        sh("ip", "link", "add", _bridge(self.work), "type", "bridge")
        sh("ip", "addr", "add", f"172.31.{_unused_subnet()}.1/24", "dev", _bridge(self.work))
        log = (self.work / "dockerd.log").open("wb")
        apart = ["--iptables=false", "--ip6tables=false", "--bridge", _bridge(self.work)]
        places = ["--data-root", self.work / "data", "--exec-root", self.work / "exec", "-p", self.work / "docker.pid"]
        command = ["dockerd", *apart, *places, "-H", self.environment["DOCKER_HOST"]]
        self._daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 20
        while time.monotonic() < until and self._daemon.poll() is None:
            with contextlib.suppress(RuntimeError):
                self.docker("info")
                return
            time.sleep(0.2)
        raise NoEngineError(f"the daemon does not answer: {(self.work / 'dockerd.log').read_text()[-2000:]}")

    def _unpack(self, package: str, suite: str) -> Path:
        """A package of another Debian, unpacked and not installed: apt with lists and caches of its own."""
        home = self._downloads / suite
        options = [f"-oDir::Etc::sourcelist={home}/sources.list", "-oDir::Etc::sourceparts=/dev/null"]
        options += [f"-oDir::State::lists={home}/lists", f"-oDir::Cache={home}/cache", "-oAPT::Sandbox::User=root"]
        if not home.exists():
            for folder in ("lists/partial", "cache/archives/partial"):
                (home / folder).mkdir(parents=True)
            key = "/usr/share/keyrings/debian-archive-keyring.gpg"
            (home / "sources.list").write_text(f"deb [signed-by={key}] {_mirror()} {suite} main\n")
            sh("apt-get", *options, "update")
        sh("apt-get", *options, "download", package, cwd=home)
        [archive] = home.glob(f"{package}_*.deb")
        sh("dpkg", "-x", archive, home / package)
        return home / package


def _bridge(work: Path) -> str:
    return f"gr{work.name[-8:]}"  # a network interface's name has 15 characters at most


def _unused_subnet() -> int:
    taken = sh("ip", "-4", "addr")
    return next(number for number in range(250, 0, -1) if f"172.31.{number}." not in taken)


def _mirror() -> str:
    for source in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("debian*")):
        found = MIRROR.search(source.read_text()) if source.is_file() else None
        if found:
            return found[1]
    raise NoEngineError("apt's sources name no mirror of Debian")


def _require_a_fit_machine() -> None:
    if sys.platform != "linux" or os.geteuid():
        raise NoEngineError("it takes root on Linux")
    if "overlay" not in Path("/proc/filesystems").read_text():
        raise NoEngineError("the kernel has no overlay file system")
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        raise NoEngineError("the machine is not Debian")
    try:
        _mirror()
        sh("apt-get", "update")
        missing = [package for package, program in NEEDED.items() if not shutil.which(program)]
        if missing:
            sh("apt-get", "install", "--yes", "--no-install-recommends", *missing)
    except RuntimeError as error:
        raise NoEngineError(str(error)) from None
