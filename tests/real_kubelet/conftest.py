"""Tests with a real kubelet, whatever its version: the binary that USBPLUGIN_KUBELET names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.test_containerd import obstacle
from tests.deploy.tools import missing
from tests.real_kubelet.rig import RealKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_KUBELET = os.environ.get("USBPLUGIN_KUBELET", "")


def pytest_runtest_setup() -> None:
    if not _KUBELET:
        # Also with USBPLUGIN_REQUIRE_ALL: no package has one.
        pytest.skip("needs a kubelet that USBPLUGIN_KUBELET names; make kubelet-test builds one")
    if not os.access(_KUBELET, os.X_OK):
        pytest.fail(f"USBPLUGIN_KUBELET={_KUBELET} is no program", pytrace=False)
    if reason := obstacle():
        missing(reason)


@pytest.fixture
async def node() -> AsyncIterator[RealKubelet]:
    async with RealKubelet(Path(_KUBELET).resolve()) as node:
        yield node
