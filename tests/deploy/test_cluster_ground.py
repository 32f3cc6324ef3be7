"""Whether ``make cluster-test`` may touch a cluster: decided before anything is changed there.

kubectl is played by a script that answers from a file, and would fail if it were told to change
anything.
"""

from __future__ import annotations

import json
import os
import pty
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import ground

if TYPE_CHECKING:
    from collections.abc import Callable

Answers = dict[str, Any]
NOBODY = Path("/nonexistent/tty")

KUBECTL = """#!{python}
import json, pathlib, sys
answers = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
arguments = sys.argv[3:]
words = [word for word in arguments if not word.startswith("--")]
answer = answers.get(" ".join(words))
if answer is None:
    sys.exit("no answer to: " + " ".join(arguments))
print(answer if isinstance(answer, str) else json.dumps(answer))
"""


def node(name: str = "node-1", **labels: str) -> Answers:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"operatingSystem": "linux"},
        },
    }


def of_namespace(namespace: str, **labels: str) -> Answers:
    return {"metadata": {"namespace": namespace, "labels": labels}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for variable in ("CONTEXT", "NODE", "IMAGE", "BASE"):
        monkeypatch.delenv(f"USBPLUGIN_CLUSTER_{variable}", raising=False)
    script = tmp_path / "kubectl"
    script.write_text(KUBECTL.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(script))

    def answer(
        context: str = "production",
        nodes: tuple[Answers, ...] = (node(),),
        pods: tuple[Answers, ...] = (),
        daemonsets: tuple[Answers, ...] = (),
        ours: tuple[Answers, ...] = (),
    ) -> None:
        answers = {
            "config current-context": context,
            "config view": "https://cluster.example.com:6443",
            "get nodes": {"items": nodes},
            "get pods": {"items": pods},
            "get daemonsets": {"items": daemonsets},
            f"get namespaces -l{ground.MARK}": {"items": ours},
        }
        script.with_suffix(".json").write_text(json.dumps(answers))

    return answer


WORKLOADS = (of_namespace("kube-system"), of_namespace("shop"))


@pytest.mark.parametrize(
    ("context", "pods"),
    [("kind-usbplugin", WORKLOADS), ("minikube", WORKLOADS), ("lab", WORKLOADS[:1])],
)
def test_a_test_cluster_is_used_without_a_question(
    cluster: Callable[..., None], context: str, pods: tuple[Answers, ...]
) -> None:
    cluster(context, pods=pods)
    assert ground.find(NOBODY).node == "node-1"


def test_another_one_is_not_touched_if_nobody_can_be_asked(cluster: Callable[..., None]) -> None:
    cluster(pods=WORKLOADS)
    with pytest.raises(ground.RefusedError, match=r"there are pods in shop.*CONTEXT=production"):
        ground.find(NOBODY)


@pytest.mark.parametrize(("answer", "allowed"), [("production", True), ("yes", False)])
def test_a_person_is_asked(cluster: Callable[..., None], answer: str, allowed: bool) -> None:  # noqa: FBT001
    cluster(pods=WORKLOADS)
    person, terminal = pty.openpty()
    path = Path(os.ttyname(terminal))
    asked = b""

    def reply() -> None:
        nonlocal asked
        while b"to go on: " not in asked:
            asked += os.read(person, 4096)
        os.write(person, answer.encode() + b"\n")

    thread = threading.Thread(target=reply)
    thread.start()
    try:
        if allowed:
            assert ground.find(path).context == "production"
        else:
            with pytest.raises(ground.RefusedError):
                ground.find(path)
    finally:
        thread.join()
        os.close(person)
        os.close(terminal)
    assert b"https://cluster.example.com:6443" in asked


def test_a_variable_that_names_the_context_answers_the_question(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(pods=WORKLOADS)
    monkeypatch.setenv("USBPLUGIN_CLUSTER_CONTEXT", "production")
    assert ground.find(NOBODY).context == "production"
    monkeypatch.setenv("USBPLUGIN_CLUSTER_CONTEXT", "staging")
    with pytest.raises(ground.RefusedError):
        ground.find(NOBODY)


def test_a_cluster_that_has_usbplugin_is_not_touched(cluster: Callable[..., None]) -> None:
    installed = of_namespace("serial", **{"app.kubernetes.io/name": "usbplugin"})
    cluster("kind-usbplugin", daemonsets=(installed,))
    with pytest.raises(ground.RefusedError, match="installed in namespace serial"):
        ground.find(NOBODY)


def test_a_labelled_node_is_not_touched_unless_an_earlier_run_labelled_it(
    cluster: Callable[..., None],
) -> None:
    labelled = node(**{ground.LABEL: "true"})
    cluster("kind-usbplugin", nodes=(labelled,))
    with pytest.raises(ground.RefusedError, match="kubectl label node node-1"):
        ground.find(NOBODY)
    ours = {"metadata": {"name": "usbplugin-test-pods", "labels": {ground.MARK: "true"}}}
    cluster("kind-usbplugin", nodes=(labelled,), ours=(ours,))
    assert ground.find(NOBODY).node == "node-1"


def test_a_worker_is_preferred_and_one_that_is_not_ready_is_not_used(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    control, worker, away = node("a-control"), node("worker"), node("away")
    control["spec"] = {"taints": [{"key": "node-role.kubernetes.io/control-plane"}]}
    away["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    cluster("kind-usbplugin", nodes=(control, away, worker))
    assert ground.find(NOBODY).node == "worker"
    monkeypatch.setenv("USBPLUGIN_CLUSTER_NODE", "away")
    with pytest.raises(ground.RefusedError, match="away"):
        ground.find(NOBODY)


def test_without_kubectl_or_without_a_cluster_there_is_nothing_to_test(
    cluster: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubectl.json").write_text("{}")
    with pytest.raises(ground.NoGroundError, match="no cluster answers"):
        ground.find(NOBODY)
    monkeypatch.delenv("KUBECTL")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ground.NoGroundError, match="kubectl is not here"):
        ground.find(NOBODY)
