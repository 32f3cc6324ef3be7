"""A real kube-apiserver with etcd, for the tests that the small one has to agree with.

USBPLUGIN_KUBE_APISERVER and USBPLUGIN_ETCD name the programs. The manifests are applied as people
apply them, and the token is one that a kubelet would get for a pod on the node.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.apiserver import NODE
from tests.certificates import Authority
from tests.deploy.manifests import DEPLOY, REMEDY
from tests.deploy.tools import output, program
from usbplugin.dra.access import Access

if TYPE_CHECKING:
    from types import TracebackType

APISERVER = os.environ.get("USBPLUGIN_KUBE_APISERVER", "")
ETCD = os.environ.get("USBPLUGIN_ETCD", "")
NEEDS = "needs kube-apiserver and etcd: USBPLUGIN_KUBE_APISERVER and USBPLUGIN_ETCD name them"

_ADMIN = "token-of-an-administrator"
_STARTUP = 60.0
_OBJECTS = f"""
apiVersion: v1
kind: Node
metadata: {{name: {NODE}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: usbplugin-7xk2p, namespace: usbplugin}}
spec:
  nodeName: {NODE}
  serviceAccountName: usbplugin
  containers: [{{name: usbplugin, image: usbplugin}}]
"""


class RealApiServer:
    """Listens on 127.0.0.1; ends with its context."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self._directory = directory
        self._flags = flags
        self._port, self._etcd, self._peer = free_ports(3)
        self._exits = ExitStack()

    @property
    def access(self) -> Access:
        return Access.of(f"https://127.0.0.1:{self._port}", self._directory)

    def __enter__(self) -> Self:
        folder = self._directory
        authority = Authority.new()
        authority.write(folder / "ca.crt")
        authority.certify("127.0.0.1", folder / "server.pem")
        Authority.new().write_key(folder / "accounts.key")
        (folder / "tokens.csv").write_text(f"{_ADMIN},admin,admin,system:masters\n")
        etcd, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd, self._peer))
        self._start(
            *(ETCD, "--name=test", f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            f"--initial-cluster=test={peer}",
        )
        self._start(
            *(APISERVER, f"--etcd-servers={etcd}", "--bind-address=127.0.0.1"),
            *("--advertise-address=127.0.0.1", f"--secure-port={self._port}"),
            *(f"--tls-cert-file={folder / 'server.pem'}", "--authorization-mode=RBAC"),
            f"--tls-private-key-file={folder / 'server.pem'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'accounts.key'}",
            f"--service-account-signing-key-file={folder / 'accounts.key'}",
            *("--service-cluster-ip-range=10.97.0.0/24", "--endpoint-reconciler-type=none"),
            "--disable-admission-plugins=ServiceAccount",  # it waits for a controller
            *self._flags,
        )
        try:
            self._prepare()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exits.close()

    def kubectl(self, *arguments: str, text: str = "") -> str:
        return self._run(*arguments, text=text).stdout

    def warnings(self, *arguments: str, text: str = "") -> str:
        """What kubectl says besides."""
        return self._run(*arguments, text=text).stderr

    def _run(self, *arguments: str, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(program("kubectl", REMEDY), f"--server=https://127.0.0.1:{self._port}"),
                *(f"--certificate-authority={self._directory / 'ca.crt'}", f"--token={_ADMIN}"),
                *arguments,
            ],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            cwd=self._directory,
            env={**os.environ, "HOME": str(self._directory), "KUBECONFIG": "/dev/null"},
        )

    def _prepare(self) -> None:
        deadline = time.monotonic() + _STARTUP
        while True:
            try:
                self.kubectl("get", "--raw", "/readyz")
                break
            except subprocess.CalledProcessError as error:
                if time.monotonic() > deadline:
                    log = (self._directory / f"{Path(APISERVER).name}.log").read_text()
                    raise AssertionError(f"kube-apiserver is not ready: {log[-500:]}") from error
                time.sleep(0.5)
        overlay = output(
            program("kubectl", REMEDY), "kustomize", str(DEPLOY / "kustomize/overlays/dra")
        )
        self.kubectl("apply", "--validate=false", "--filename=-", text=overlay)
        self.kubectl("apply", "--validate=false", "--filename=-", text=_OBJECTS)
        token = self.kubectl(
            *("create", "token", "usbplugin", "--namespace=usbplugin"),
            *("--bound-object-kind=Pod", "--bound-object-name=usbplugin-7xk2p"),
        )
        (self._directory / "token").write_text(token)

    def _start(self, program_: str, *arguments: str) -> None:
        log = self._exits.enter_context((self._directory / f"{Path(program_).name}.log").open("wb"))
        process = subprocess.Popen([program_, *arguments], stdout=log, stderr=log)
        self._exits.callback(process.wait)
        self._exits.callback(process.kill)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with ExitStack() as exits:
        listeners = [exits.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
