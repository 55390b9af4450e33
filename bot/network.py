"""Where an attempt may go: how destinations are written, which rules allow them, and which addresses are never reached.

A destination is a host and a port. A rule names hosts (``example.com``, ``*.example.com`` for what is below it, ``*``
for every name) and maybe a port; without one it means 443, and 80 for plain HTTP. An IP address is allowed only by a
rule that is this address. In ``Terms.allow`` a rule ends in ``" private"`` when it is the server's own: only such a
destination may lie in the networks of EGRESS_PRIVATE.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from yarl import URL

if TYPE_CHECKING:
    from bot.config import Settings
    from bot.repo_config import NetworkConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TLS_PORT = 443
HTTP_PORT = 80
#: What follows a refused destination when no rule can help; see explain().
NOT_PUBLIC = "not a public address"
OVER_LIMIT = "over this job's limit"
MALFORMED = "malformed"
#: What follows one that was tried in the way for which its port is not the usual one; see blocked_entry().
_BY_CONNECT, _BY_PLAIN_HTTP = "by CONNECT", "by plain HTTP"

_PRIVATE_MARK = " private"
_MAX_NAME = 253  # RFC 1035, 2.3.4, without the final dot
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# what browsers and C libraries take for a part of an IPv4 address: https://url.spec.whatwg.org/#ends-in-a-number-checker
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_ODD = re.compile(r"[^a-z0-9.:_\[\]*-]")


class RuleError(ValueError):
    """A rule or destination that is not written as we take them; the text says what is wrong."""


@dataclass(frozen=True)
class Destination:
    """Where somebody wants to connect. ``host`` is normalised: lower case, no final dot, IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The host when it is an IP address."""
        return _address(self.host)


@dataclass(frozen=True)
class Rule:
    """A set of destinations. ``host`` is "*" for every name; ``below``: the names below it, not itself."""

    host: str
    below: bool = False
    port: int | None = None  # None: 443, and 80 for plain HTTP
    any_port: bool = False
    private: bool = False  # the server's own: may lie in a network of EGRESS_PRIVATE

    def __str__(self) -> str:
        host = f"*.{self.host}" if self.below else _bracketed(self.host)
        port = ":*" if self.any_port else f":{self.port}" if self.port else ""
        return f"{host}{port}"

    def allows(self, wanted: Destination, *, tunnel: bool) -> bool:
        """Whether ``wanted`` is one of them. ``tunnel``: by CONNECT, else by plain HTTP."""
        default = TLS_PORT if tunnel else HTTP_PORT
        return self._names(wanted.host) and (self.any_port or wanted.port == (self.port or default))

    def _names(self, host: str) -> bool:
        if _address(host) is not None:
            return self.host == host and not self.below
        if self.below:
            return host.endswith(f".{self.host}")
        return self.host in ("*", host)

    def covers(self, other: Rule) -> bool:
        """Whether every destination of ``other`` is also one of this rule."""
        if self.any_port:
            ports = True
        elif self.port is None:  # 443 and 80 are what it means, in whichever way they are reached
            ports = not other.any_port and other.port in (None, TLS_PORT, HTTP_PORT)
        else:
            ports = not other.any_port and other.port == self.port
        if other.below:
            hosts = self.host == "*" or (self.below and f".{other.host}".endswith(f".{self.host}"))
        elif other.host == "*":
            hosts = self.host == "*"
        else:
            hosts = self._names(other.host)
        return ports and hosts


def parse_host(text: str) -> str:
    """``text`` as a request names a host, normalised. Raises RuleError for every odd form.

    Taken are names (ASCII, at most 253 characters), dotted IPv4 and bracketed IPv6 addresses. What some library
    would read as another address than another (octal, hexadecimal, short and whole-number IPv4, zones, IPv4 inside
    IPv6) is refused, as is user information.
    """
    if not text.isascii():
        raise RuleError("a host is written in ASCII; use its xn-- form")
    if text.startswith("[") and text.endswith("]"):
        try:
            found = ipaddress.IPv6Address(text[1:-1])
        except ValueError as error:
            raise RuleError("this is no IPv6 address") from error
        if found.scope_id is not None or found.ipv4_mapped is not None:
            raise RuleError("an address with a zone, or an IPv4 address inside an IPv6 one, is not taken")
        return str(found)
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name if text[-1:] != "." else ""))
        except ValueError as error:
            raise RuleError("an IPv4 address is four decimal numbers without leading zeros") from error
    if not name or len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise RuleError("this is no host name")
    return name


def parse_destination(text: str, default_port: int | None = None) -> Destination:
    """``host:port`` (RFC 9112, 3.2.3). Without ``default_port`` the port must be there. Raises RuleError."""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):  # the colons of a bracketed IPv6 address
        host, port = text, ""
        if default_port is None:
            raise RuleError("the port is missing")
    number = _port(port) if port or (colon and default_port is None) else default_port
    if number is None:
        raise RuleError("the port is missing")
    return Destination(parse_host(host), number)


def parse_rule(text: str) -> Rule:
    """A rule as people write it: ``host``, ``*.suffix``, ``*``, each with ``:port`` or ``:*``. Raises RuleError.

    Names may be international; they are kept in their xn-- form.
    """
    if not text or re.search(r"[\s\0-\x20@/\\%#?]", text):
        raise RuleError(f"{text!r} is no host: write example.com, *.example.com or example.com:8443")
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.endswith("]")):
        host, port = text, ""  # no port, or a bare IPv6 address
    elif not port:
        raise RuleError(f"{text!r}: the port is missing after the colon")
    if _address(host) is not None and ":" in host:
        host = f"[{host}]"
    below = host.startswith("*.")
    try:
        name = "*" if host == "*" else parse_host(_ascii(host.removeprefix("*.")))
        number = None if port in ("", "*") else _port(port)
    except RuleError as error:
        raise RuleError(f"{text!r}: {error}") from error
    if below and _address(name) is not None:
        raise RuleError(f"{text!r}: an address has nothing below it")
    return Rule(name, below=below, port=number, any_port=port == "*")


@lru_cache(maxsize=1024)
def parsed(allow: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules of ``Terms.allow``. Raises RuleError."""
    return tuple(
        replace(parse_rule(text.removesuffix(_PRIVATE_MARK)), private=text.endswith(_PRIVATE_MARK))
        for text in allow
    )


def matching(rules: Iterable[Rule], wanted: Destination, *, tunnel: bool) -> Rule | None:
    """The rule that allows ``wanted``, one for private networks before others; None when none does."""
    found = [rule for rule in rules if rule.allows(wanted, tunnel=tunnel)]
    return max(found, key=lambda rule: rule.private, default=None)


def shown(text: str) -> str:
    """A destination that a stranger wrote, as it may be recorded and shown: short, and without odd characters."""
    short = text.lower() if len(text) <= 120 else f"{text[:117].lower()}..."
    return _ODD.sub("?", short) or "?"


# --- who allows what ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a job may reach, and what its repository asked for in vain."""

    allow: tuple[str, ...]  # for Terms.allow
    refused: tuple[str, ...] = ()  # of network.allow: the server's operator does not allow them
    unknown_presets: tuple[str, ...] = ()  # of network.presets: there are none of that name here


def rules_for(
    settings: Settings, network: NetworkConfig, image_presets: Mapping[str, Sequence[str]]
) -> Rules:
    """The rules of a job. ``image_presets``: those of the package managers in its image (runners/presets.py).

    Always what EGRESS_ALLOW says. Of the presets (the image's and EGRESS_PRESETS, which adds to them) those that the
    repository names, by default the image's. Of the repository's own rules those that EGRESS_MAY_ALLOW covers.
    """
    found = dict(image_presets) if settings.egress_image_presets else {}
    presets = {
        name: (*found.get(name, ()), *settings.egress_presets.get(name, ()))
        for name in (*found, *settings.egress_presets)
    }
    chosen = tuple(image_presets) if network.presets is None else network.presets
    own = [*settings.egress_allow, *(rule for name in chosen for rule in presets.get(name, ()))]
    may = [parse_rule(pattern) for pattern in settings.egress_may_allow]
    allow = {f"{parse_rule(rule)}{_PRIVATE_MARK}": None for rule in own}
    refused = []
    for text in network.allow:
        rule = parse_rule(text)
        if any(pattern.covers(rule) for pattern in may):
            allow[str(rule)] = None
        elif not any(parse_rule(server).covers(rule) for server in own):
            refused.append(str(rule))
    unknown = [name for name in network.presets or () if name not in presets]
    return Rules(allow=tuple(allow), refused=tuple(refused), unknown_presets=tuple(unknown))


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """A destination that a job was refused, for its comment."""

    where: str
    times: int
    line: str | None = None  # what the repository may add to network.allow; None: nothing would help
    why: str = ""  # with no line


def blocked_entry(wanted: Destination, *, tunnel: bool) -> str:
    """``wanted`` as it is recorded when no rule allows it. ``tunnel``: by CONNECT, else by plain HTTP.

    The way is told where a rule without a port would mean the other one: CONNECT to port 80, plain HTTP to port 443.
    """
    if tunnel and wanted.port == HTTP_PORT:
        return f"{wanted} {_BY_CONNECT}"
    if not tunnel and wanted.port == TLS_PORT:
        return f"{wanted} {_BY_PLAIN_HTTP}"
    return str(wanted)


def explain(blocked: Mapping[str, int], may_allow: Sequence[str]) -> list[Blocked]:
    """What to tell about ``desk.blocked``, the most wanted first; ``may_allow`` is EGRESS_MAY_ALLOW."""
    may = [parse_rule(pattern) for pattern in may_allow]
    told = []
    for entry, times in sorted(blocked.items(), key=lambda item: (-item[1], item[0])):
        where, _, why = entry.partition(" ")
        line = None
        if why in ("", _BY_CONNECT, _BY_PLAIN_HTTP):
            line, why = _line_for(where, may, usual=not why)
        told.append(Blocked(where=shown(where), times=times, line=line, why=why.strip("()")))
    return told


def _line_for(where: str, may: Sequence[Rule], *, usual: bool) -> tuple[str | None, str]:
    """The rule that allows it, or why there is none. ``usual``: a rule without a port means it, on 443 and 80."""
    try:
        wanted = parse_destination(where)
    except RuleError:
        return None, MALFORMED
    bare = usual and wanted.port in (TLS_PORT, HTTP_PORT) and wanted.address is None
    port = None if bare else wanted.port
    rule = Rule(wanted.host, port=port)
    if any(pattern.covers(rule) for pattern in may):
        return str(rule), ""
    return None, "the server's operator does not allow it"


# --- addresses ---------------------------------------------------------------------------------------------


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: Nobody's package registry: "this" network, link-local, multicast, broadcast, and the clouds' metadata services that
#: are not link-local (Alibaba, Oracle, Azure, AWS, Google).
_NEVER = _networks(
    *("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
    *("100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32"),
    *("::/128", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32"),
)
# https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry
_SPECIAL = _networks(
    *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
    *("192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
    # the tunnels among them (Teredo in 2001::/23, 6to4) carry IPv4 addresses
    *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def address_refusal(address: Address, private: Sequence[Network] = ()) -> str | None:
    """Why ``address`` must not be connected to; None when it may. ``private``: networks that may be all the same."""
    inner = _inner(address)
    if inner is not None and (refusal := address_refusal(inner, private)) is not None:
        return f"{refusal}, inside an IPv6 address"
    if any(address in network for network in _NEVER if network.version == address.version):
        return "it is link-local, multicast, a metadata service or no host's at all"
    if any(address in network for network in private if network.version == address.version):
        return None
    if address.version == 4:
        public = not any(address in network for network in _SPECIAL if network.version == 4)
    elif address in _NAT64:
        public = True  # the address inside was looked at above
    else:
        public = address in _GLOBAL_V6 and not any(
            address in network for network in _SPECIAL if network.version == 6
        )
    return None if public else "it is not public"


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


# --- the container's side ----------------------------------------------------------------------------------

#: The relay's port in texts for the shim, which fills it in as it does with {gateway}.
PORT_PLACEHOLDER = "{gateway-port}"
_DIRECT = ("127.0.0.1", "localhost", "::1")


def proxy_environment(token: str, port: str = PORT_PLACEHOLDER) -> dict[str, str]:
    """The variables by which programs in the container use the proxy with the attempt's ``token``.

    pip, apt, go, gem, cargo and curl read the general ones. npm and Yarn have names of their own, Node.js must be told
    to look (https://nodejs.org/api/cli.html#node_use_env_proxy1), and Maven and Gradle take Java's properties
    (https://docs.gradle.org/current/userguide/networking.html). The gateway itself must be reached without the proxy.
    """
    url = f"http://agent:{token}@127.0.0.1:{port}"
    direct = ",".join(_DIRECT)
    java = " ".join(
        [
            *(
                f"-D{scheme}.proxy{name}={value}"
                for scheme in ("http", "https")
                for name, value in (
                    ("Host", "127.0.0.1"), ("Port", port), ("User", "agent"), ("Password", token),
                )
            ),
            f"-Dhttp.nonProxyHosts={'|'.join(_DIRECT[:2])}",
            # Java refuses Basic for CONNECT by default (net.properties)
            "-Djdk.http.auth.tunneling.disabledSchemes=",
        ]
    )  # fmt: skip
    return {
        **{
            name: url
            for scheme in ("http", "https")
            for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
        },
        "no_proxy": direct,
        "NO_PROXY": direct,
        "npm_config_proxy": url,
        "npm_config_https_proxy": url,
        "npm_config_noproxy": direct,
        "YARN_HTTP_PROXY": url,
        "YARN_HTTPS_PROXY": url,
        "NODE_USE_ENV_PROXY": "1",
        "MAVEN_OPTS": java,
        "GRADLE_OPTS": java,
    }


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return URL.build(scheme="http", host=host).raw_host or ""
    except ValueError as error:
        raise RuleError("this is no host name") from error


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise RuleError("a port is a number from 1 to 65535")
    return int(text)


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
