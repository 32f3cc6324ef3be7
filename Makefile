# The habits of this project; `make` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
AUDIT  := build/audit
MUTANTS := build/mutants/env
SECONDS ?= 3600

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test hardware-test hardware-shell kubelet-test api-server-test cluster-test faults soak fuzz mutants image image-test kind-demo deploy-tools lint types format bench hardware-bench audit sbom protos docs pictures lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(VENV)/.installed ## make the virtual environment from the lock
$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "usbplugin needs Python 3.11 or newer with the venv module; '$(PYTHON)' is not that." >&2; \
	    echo "On Debian and Ubuntu: apt-get install python3-venv. Another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv ## plug, allocate, unplug, replug: the main job in under 15 s, with no hardware and no cluster
	@$(BIN)/usbplugin demo

test: .venv ## all tests that need neither root nor hardware
	$(BIN)/pytest

hardware-test: .venv ## the tests on a real USB stack, in a virtual machine (QEMU; no KVM needed)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -p no:cacheprovider --collect-only tests/hardware > /dev/null
	$(BIN)/python -m tests.hardware.vm --timeout 2400 -- \
	  python -m pytest -p no:cacheprovider --junitxml=results/hardware/junit.xml tests/hardware $(ARGS)

hardware-shell: .venv ## a shell in that machine, to plug and unplug devices by hand (usbgadget)
	@$(BIN)/python -m tests.hardware.vm --shell

USBPLUGIN_KUBELET ?= build/kubelet
kubelet-test: .venv $(USBPLUGIN_KUBELET) ## pods on a real kubelet, by default one built from Debian's source (root, containerd)
	USBPLUGIN_KUBELET=$(USBPLUGIN_KUBELET) USBPLUGIN_REQUIRE_ALL=1 $(BIN)/pytest tests/real_kubelet $(ARGS)

api-server-test: .venv deploy-tools ## the small API server of the tests against a real one (USBPLUGIN_KUBE_APISERVER and USBPLUGIN_ETCD name the programs)
	$(BIN)/pytest tests/dra/test_api_contract.py $(ARGS)

IMAGE ?=
cluster-test: export USBPLUGIN_CLUSTER_IMAGE = $(IMAGE)
cluster-test: .venv ## does it work on the cluster of KUBECONFIG? (kubectl; the image: IMAGE=...; asks first)
	USBPLUGIN_CLUSTER_TEST=1 $(BIN)/pytest -o junit_family=xunit1 --junitxml=results/cluster/junit.xml tests/cluster $(ARGS)

build/kubelet:
	tests/real_kubelet/build.sh $@

faults: .venv ## do each kind of harm to a node once, and see that the kubelet knows the truth after it
	$(BIN)/python -m tests.faults $(ARGS)

soak: .venv ## the same again and again, for SECONDS (an hour), and rewrite the tables of docs/reliability.md
	$(BIN)/python -m tests.faults --seconds $(SECONDS) --output results/soak/faults.json $(ARGS)
	$(BIN)/python -m tests.faults.page results/soak/faults.json docs/reliability.md

fuzz: .venv ## thousands of hostile examples for whatever comes from outside, and of histories of a node (minutes)
	USBPLUGIN_HYPOTHESIS=explore $(BIN)/pytest --timeout 0 tests/fuzz tests/world $(ARGS)

$(MUTANTS)/.installed: requirements-mutants.lock
	$(PYTHON) -m venv $(MUTANTS)
	$(MUTANTS)/bin/python -m pip install --quiet --require-hashes -r requirements-mutants.lock
	@touch $@

mutants: $(MUTANTS)/.installed .venv ## break the code in small ways, see what no test notices (an hour or more; minutes for ARGS=usbplugin/custody/links.py)
	$(BIN)/python -m tests.mutants $(ARGS)

image: ## build the container image with docker, podman or buildah
	deploy/image/build.sh $(IMAGE_FLAGS)

image-test: .venv deploy-tools ## try the image, and as root the pods of the manifests
	deploy/image/test.sh

kind-demo: ## kind, virtual ttys, a pod, unplug, replug (needs docker, kind, kubectl)
	deploy/kind/demo.sh

deploy-tools: .venv ## real kubectl and helm, pinned by hash, for tests/deploy (Linux x86-64)
	@test -x build/tools/helm || $(BIN)/python tests/deploy/fetch_tools.py

lint: .venv ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

types: .venv ## mypy --strict alone
	$(BIN)/mypy

format: .venv ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

bench: .venv ## measure, print a table, write results/bench.json; fails where a bar is missed
	$(BIN)/python -m benchmarks $(ARGS)

hardware-bench: .venv ## from the kernel's uevent to the kubelet's stream, in the virtual machine
	$(BIN)/python -m tests.hardware.vm --timeout 2400 -- python -m benchmarks.hardware $(ARGS)

protos: .venv ## regenerate usbplugin/api from protos/
	$(BIN)/python protos/generate.py usbplugin/api

docs: .venv ## regenerate what docs/ derives from the code
	$(BIN)/python docs/generate.py
	$(BIN)/python -m usbplugin.telemetry.document > docs/metrics.md

pictures: .venv ## make the pictures of README and docs from the real program (needs Chromium)
	$(BIN)/python docs/images/make.py

$(AUDIT)/.installed: requirements-audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --require-hashes -r requirements-audit.lock
	@touch $@

audit: $(AUDIT)/.installed ## known vulnerabilities of what requirements.lock names (asks PyPI)
	@$(AUDIT)/bin/pip-audit --strict --require-hashes --disable-pip -r requirements.lock || \
	  { echo "audit: not passed. If no vulnerability is named above, then PyPI's JSON API, which has the" >&2; \
	    echo "advisories, gave no answer for each package; not every mirror of PyPI has it." >&2; exit 1; }

# An installed package tells its licence and what it needs; only the lock has the hashes. And the version
# is not in pyproject.toml itself, where the tool looks for it.
define MERGE
import json, pathlib, re, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
import usbplugin

def packages(document):
    return {re.sub("[-_.]+", "-", c["name"]).lower(): c for c in document["components"]}

installed, locked = (json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:3])
installed["metadata"]["component"]["version"] = usbplugin.__version__
hashed = packages(locked)
for name, component in packages(installed).items():
    if component["version"] != hashed[name]["version"]:
        sys.exit(f"sbom: {name} is not what the lock says")
    links = component.setdefault("externalReferences", [])
    links += [link for link in hashed[name]["externalReferences"] if link.get("hashes")]
    links.sort(key=lambda link: (link["type"], link["url"], link.get("comment", "")))
text = json.dumps(installed, indent=2, ensure_ascii=False) + "\n"
if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
    sys.exit(f"sbom: not valid: {error}")
pathlib.Path(sys.argv[3]).write_text(text, encoding="utf-8")
endef
sbom: export MERGE := $(MERGE)

CYCLONEDX = $(AUDIT)/bin/python -W ignore -m cyclonedx_py
CYCLONEDX_FLAGS := --pyproject pyproject.toml --mc-type application --spec-version 1.6 --output-reproducible

sbom: $(AUDIT)/.installed .venv ## what the program is made of, as CycloneDX 1.6: dist/usbplugin.cdx.json
	rm -rf build/runtime && $(PYTHON) -m venv --without-pip build/runtime && mkdir -p dist
	$(BIN)/uv pip install --quiet --python build/runtime/bin/python --require-hashes -r requirements.lock
	$(CYCLONEDX) environment $(CYCLONEDX_FLAGS) --output-file build/installed.cdx.json build/runtime/bin/python
	$(CYCLONEDX) requirements $(CYCLONEDX_FLAGS) --output-file build/locked.cdx.json requirements.lock
	@$(AUDIT)/bin/python -c "$$MERGE" build/installed.cdx.json build/locked.cdx.json dist/usbplugin.cdx.json
	@echo written to dist/usbplugin.cdx.json

lock: .venv ## compile requirements*.lock from pyproject.toml (UPGRADE=1 takes newer releases)
	$(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" pyproject.toml --group dev \
	  --constraint requirements.lock --output-file requirements-dev.lock
	echo 'hatchling>=1.27' | $(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --generate-hashes \
	  --python-version 3.11 --no-emit-index-url --no-annotate --custom-compile-command "make lock" - \
	  --constraint requirements-dev.lock --output-file deploy/image/requirements-build.lock
	$(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --group audit --output-file requirements-audit.lock
	$(BIN)/uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --group mutants --output-file requirements-mutants.lock

clean: ## remove what the other targets made
	rm -rf $(VENV) results build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
