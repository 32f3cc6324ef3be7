"""The kubelet's rules for the names of extended resources."""

from __future__ import annotations

import re

_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_NAME_PART = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)?[A-Za-z0-9]")
# The kubelet checks the name with "requests." in front, the form quotas use.
_LONGEST_DOMAIN = 253 - len("requests.")
_LONGEST_NAME_PART = 63


def resource_name_problem(name: str) -> str:
    """Why the kubelet would refuse ``name`` as an extended resource; empty if it would accept it.

    The rules are IsExtendedResourceName's (Kubernetes, pkg/apis/core/v1/helper) and
    IsQualifiedName's (apimachinery, pkg/util/validation).
    """
    domain, slash, part = name.partition("/")
    if not slash:
        return "expected domain/name"
    if "kubernetes.io/" in name:
        return "expected a domain of your own: anything ending in kubernetes.io is reserved"
    if name.startswith("requests."):
        return "expected a domain that does not begin with 'requests.'"
    if len(domain) > _LONGEST_DOMAIN or not _DNS_SUBDOMAIN.fullmatch(domain):
        return "expected a lower-case DNS name before the slash"
    if len(part) > _LONGEST_NAME_PART or not _NAME_PART.fullmatch(part):
        return "expected at most 63 letters, digits, '-', '_' or '.' after the slash"
    return ""
