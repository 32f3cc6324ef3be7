"""Which names a request may ask for: those that no stranger's page can make a browser send.

A page whose own name is made to lead to this server (DNS rebinding) may read what the server
answers. The browser then sends that page's name as the Host. It cannot be an address, nor a name
without a dot or in a cluster's own domain, since nobody outside can own one.
"""

from __future__ import annotations

import ipaddress
import re

# RFC 9110, 7.2, with the forms that RFC 3986, 3.2.2 has for a host.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_OWN_DOMAINS = (".svc", ".cluster.local", ".localhost")


def is_trusted_host(header: str) -> bool:
    """Whether a request with this Host header may be answered."""
    match = _HOST.fullmatch(header)
    if match is None:
        return False
    name = match[1].rstrip(".").lower()
    if "." not in name and not name.startswith("["):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.endswith(_OWN_DOMAINS)
    return True
