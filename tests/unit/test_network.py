"""Rules, destinations and addresses: what is allowed, what is refused, and how it may be written."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.config import fixed_settings
from bot.errors import ConfigurationError
from bot.network import (
    Destination,
    Rule,
    RuleError,
    address_refusal,
    matching,
    parse_destination,
    parse_host,
    parse_rule,
    parsed,
    proxy_environment,
    rules_for,
)
from bot.repo_config import NetworkConfig, RepoConfigError, parse

PRESETS = {"pypi": ("index.example.com", "files.example.com"), "npm": ("npm.example.com",)}


def allowed(rule: str, destination: str, *, tunnel: bool = True) -> bool:
    return matching([parse_rule(rule)], parse_destination(destination), tunnel=tunnel) is not None


# --- how a destination is written


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("example.com.", "example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_x.example.com", "_x.example.com"),
        ("localhost", "localhost"),
        ("1.2.3.4.example.com", "1.2.3.4.example.com"),
        ("0x7f.example", "0x7f.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:DB8::0:1]", "2001:db8::1"),
    ],
)
def test_a_host_is_normalised(text: str, host: str) -> None:
    assert parse_host(text) == host


ODD_HOSTS = [
    "", ".", "..", "a..b", ".example.com", "example.com..", "-a.example", "a-.example", "a" * 64 + ".example",
    ".".join(["a" * 60] * 5),
    # what some libraries read as 127.0.0.1
    "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1",
    "127.0.0.01", "127.0.0.0x1", "127.0.0.1.", "0", "0x", "1.2.3.4.5", "256.1.1.1", "１２７.0.0.1", "127。0。0。1",
    # IPv6 in other clothes
    "::1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[::1", "::1]", "[]",
    "[1.2.3.4]",
    "[::1].example",
    # what hides another host
    "user@example.com", "user:pass@example.com", "example.com@evil.example", "example.com%00", "example.com\0",
    "example.com%2eevil.example", "example.com#x", "example.com?x", "example.com/", "example.com\\@evil.example",
    "exam ple.com", "example.com ", "\texample.com", "example.com\r\nHost: evil.example", "bücher.example",
    "example.com;evil.example", "example.com,evil.example", "*.example.com", "*", "example.com\u3002evil",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD_HOSTS)
def test_an_odd_host_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com:443", "example.com", 443),
        ("example.com.:65535", "example.com", 65535),
        ("[::1]:80", "::1", 80),
        ("192.0.2.1:1", "192.0.2.1", 1),
    ],
)
def test_a_destination_has_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert parse_destination(text) == Destination(host, port)
    assert parse_destination(str(Destination(host, port))) == Destination(host, port)


@pytest.mark.parametrize(
    "text",
    ["example.com", "example.com:", "[::1]", ":443", "example.com:0", "example.com:65536", "example.com:0443",
     "example.com:+443", "example.com:４４３", "example.com: 443", "example.com:443:443", "example.com:https",
     "example.com:-1", "::1:443", "example.com:443 "],
)  # fmt: skip
def test_an_odd_destination_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        parse_destination(text)


def test_a_port_may_be_left_out_where_there_is_a_default() -> None:
    assert parse_destination("example.com", 80) == Destination("example.com", 80)
    assert parse_destination("[2001:db8::1]", 80) == Destination("2001:db8::1", 80)
    assert parse_destination("example.com:81", 80) == Destination("example.com", 81)


@given(st.text())
def test_whatever_is_taken_as_a_host_is_plain(text: str) -> None:
    try:
        host = parse_host(text)
    except RuleError:
        return
    assert set(host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_:")
    again = f"[{host}]" if ":" in host else host
    assert parse_host(again) == host


@given(st.ip_addresses())
def test_every_address_is_taken_in_its_plain_form_alone(address: Any) -> None:
    text = f"[{address}]" if address.version == 6 else str(address)
    if getattr(address, "ipv4_mapped", None):
        with pytest.raises(RuleError):
            parse_host(text)
    else:
        assert parse_host(text) == str(address)


# --- rules


@pytest.mark.parametrize(
    ("rule", "destination", "tunnel", "result"),
    [
        ("example.com", "example.com:443", True, True),
        ("example.com", "EXAMPLE.COM.:443", True, True),
        ("example.com", "example.com:80", False, True),
        ("example.com", "example.com:80", True, False),
        ("example.com", "example.com:443", False, False),
        ("example.com", "example.com:22", True, False),
        ("example.com", "sub.example.com:443", True, False),
        ("example.com", "notexample.com:443", True, False),
        ("example.com", "example.com.evil.example:443", True, False),
        ("*.example.com", "a.example.com:443", True, True),
        ("*.example.com", "a.b.example.com:443", True, True),
        ("*.example.com", "example.com:443", True, False),
        ("*.example.com", "notexample.com:443", True, False),
        ("*.example.com", "a.example.com.evil.example:443", True, False),
        ("example.com:8443", "example.com:8443", True, True),
        ("example.com:8443", "example.com:8443", False, True),
        ("example.com:8443", "example.com:443", True, False),
        ("*.example.com:*", "a.example.com:22", True, True),
        ("*", "anything.example:443", True, True),
        ("*", "anything.example:25", True, False),
        ("*", "192.0.2.1:443", True, False),
        ("*", "[2001:db8::1]:443", True, False),
        ("*:*", "192.0.2.1:443", True, False),
        ("192.0.2.1", "192.0.2.1:443", True, True),
        ("192.0.2.1", "192.0.2.10:443", True, False),
        ("192.0.2.1:8080", "192.0.2.1:8080", False, True),
        ("2001:db8::1", "[2001:0db8:0::1]:443", True, True),
        ("[2001:db8::1]:8443", "[2001:db8::1]:8443", True, True),
        ("bücher.example", "xn--bcher-kva.example:443", True, True),
        ("Example.COM.", "example.com:443", True, True),
    ],
)
def test_a_rule_allows_what_it_names(rule: str, destination: str, tunnel: bool, result: bool) -> None:
    assert allowed(rule, destination, tunnel=tunnel) is result


@pytest.mark.parametrize(
    "text",
    ["", " ", "https://example.com", "example.com/path", "user@example.com", "*.", "*.*", "a.*.example", "ex*mple.com",
     "**", "*example.com", "example.com:", "example.com:x", "example.com:0", "example.com private", "a b", "a\nb",
     "10.0.0.0/8", "*.10.0.0.1", "*.0.2.1", "0x7f.1", "[::ffff:1.2.3.4]", "[fe80::1%1]", "example.com#",
     "\N{SNOWMAN}..x"],
)  # fmt: skip
def test_a_wrong_rule_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        parse_rule(text)


@pytest.mark.parametrize(
    "text",
    [
        "example.com",
        "*.example.com",
        "*",
        "*:*",
        "example.com:8443",
        "*.example.com:*",
        "192.0.2.1",
        "[2001:db8::1]:1",
    ],
)
def test_a_rule_is_spelled_as_it_is_read(text: str) -> None:
    assert str(parse_rule(text)) == text
    assert parsed((text, f"{text} private")) == (
        parse_rule(text),
        Rule(**{**vars(parse_rule(text)), "private": True}),
    )


NAMES = st.sampled_from(
    ["example.com", "a.example.com", "b.a.example.com", "com", "other.example", "192.0.2.1"]
)
HOSTS = st.one_of(NAMES, st.sampled_from(["*", "*.example.com", "*.a.example.com", "*.com"]))
RULES = st.builds(lambda host, port: host + port, HOSTS, st.sampled_from(["", ":443", ":80", ":8443", ":*"]))


@given(RULES, RULES, NAMES, st.sampled_from([80, 443, 8443, 22]), st.booleans())
def test_a_covered_rule_allows_nothing_more(
    outer: str, inner: str, host: str, port: int, tunnel: bool
) -> None:
    wide, narrow = parse_rule(outer), parse_rule(inner)
    wanted = Destination(host, port)
    if wide.covers(narrow) and narrow.allows(wanted, tunnel=tunnel):
        # a rule without a port covers its two ports in both ways
        assert wide.allows(wanted, tunnel=tunnel) or (
            wide.port is None and port in (80, 443) and wide.allows(Destination(host, 443), tunnel=True)
        )


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("*", "*.example.com"), ("*", "example.com:443"), ("*.example.com", "*.a.example.com"), ("*:*", "x.example:22"),
     ("*.example.com", "a.example.com"), ("example.com:*", "example.com:9"), ("192.0.2.1", "192.0.2.1:443")],
)  # fmt: skip
def test_covering(outer: str, inner: str) -> None:
    assert parse_rule(outer).covers(parse_rule(inner))
    assert not parse_rule(inner).covers(parse_rule(outer)) or outer == inner


# --- who allows what


def network(**values: Any) -> NetworkConfig:
    return NetworkConfig(**values)


def test_by_default_the_image_s_package_managers_reach_their_registries() -> None:
    rules = rules_for(fixed_settings(), network(), PRESETS)
    assert rules.allow == (
        "index.example.com private",
        "files.example.com private",
        "npm.example.com private",
    )
    assert rules.refused == rules.unknown_presets == ()


def test_a_repository_may_choose_fewer_presets() -> None:
    assert rules_for(fixed_settings(), network(presets=["npm"]), PRESETS).allow == (
        "npm.example.com private",
    )
    assert rules_for(fixed_settings(), network(presets=[]), PRESETS).allow == ()


def test_a_preset_that_nobody_knows_is_told() -> None:
    rules = rules_for(fixed_settings(), network(presets=["npm", "conda"]), PRESETS)
    assert rules.unknown_presets == ("conda",)


def test_the_operator_s_hosts_are_added_and_own_presets_must_be_chosen() -> None:
    settings = fixed_settings(
        egress_presets={"npm": ["mirror.example.com"], "company": ["r.example.com:8443"]}
    )
    assert rules_for(settings, network(presets=["npm"]), PRESETS).allow == (
        "npm.example.com private",
        "mirror.example.com private",
    )
    assert "r.example.com:8443 private" not in rules_for(settings, network(), PRESETS).allow
    assert rules_for(settings, network(presets=["company"]), PRESETS).allow == ("r.example.com:8443 private",)


def test_the_operator_may_do_without_the_image_s_presets() -> None:
    settings = fixed_settings(egress_image_presets=False, egress_presets={"npm": ["mirror.example.com"]})
    assert rules_for(settings, network(), PRESETS).allow == ("mirror.example.com private",)
    assert rules_for(settings, network(presets=["pypi"]), PRESETS).unknown_presets == ("pypi",)


def test_a_repository_adds_only_what_the_operator_lets_it() -> None:
    wanted = network(
        allow=["docs.example.com", "*.example.org", "evil.example", "docs.example.com:22"], presets=[]
    )
    nothing = rules_for(fixed_settings(), wanted, PRESETS)
    assert nothing.allow == ()
    assert nothing.refused == ("docs.example.com", "*.example.org", "evil.example", "docs.example.com:22")
    settings = fixed_settings(egress_may_allow=["*.example.com", "*.example.org"])
    some = rules_for(settings, wanted, PRESETS)
    assert some.allow == ("docs.example.com", "*.example.org")  # not for private networks
    assert some.refused == ("evil.example", "docs.example.com:22")


def test_what_the_server_allows_anyhow_is_not_refused() -> None:
    settings = fixed_settings(egress_allow=["*.example.com"])
    rules = rules_for(settings, network(allow=["docs.example.com"], presets=[]), {})
    assert rules.allow == ("*.example.com private",)
    assert rules.refused == ()


def test_a_repository_cannot_name_a_rule_private() -> None:
    with pytest.raises(RepoConfigError, match="line 3"):
        parse("network:\n  allow:\n    - evil.example private\n")


def test_wrong_rules_are_told_where_they_stand() -> None:
    with pytest.raises(RepoConfigError, match=r"line 1, column 18.*https://x\.example"):
        parse("network: {allow: ['https://x.example']}")


@pytest.mark.parametrize(
    "values",
    [{"egress_allow": ["https://example.com"]}, {"egress_may_allow": ["a/b"]}, {"egress_presets": {"x": [""]}},
     {"egress_private": ["10.0.0.1/8"]}, {"egress_upstream": "https://p.example"}, {"egress_max_bytes": 0}],
)  # fmt: skip
def test_wrong_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, ValueError)):
        fixed_settings(**values)


def test_the_upstream_proxy_s_password_is_a_secret() -> None:
    assert "hunter2" in fixed_settings(egress_upstream="http://me:hunter2@proxy.example:3128").secrets()


# --- addresses


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
        "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1",
        "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fec0::1",
        "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "2001:db8::1", "2001::1", "2002:7f00:1::",
        "2002:a00:1::1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "3fff::1", "5f00::1", "4000::1",
    ],
)  # fmt: skip
def test_an_address_that_is_nobody_s_registry_is_refused(text: str) -> None:
    assert address_refusal(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1",
     "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255", "2606:4700::1",
     "2a00:1450:4001::200e", "64:ff9b::808:808"],
)  # fmt: skip
def test_a_public_address_is_not_refused(text: str) -> None:
    assert address_refusal(ipaddress.ip_address(text)) is None


@given(st.ip_addresses())
def test_nothing_is_allowed_that_python_does_not_call_global(address: Any) -> None:
    if address_refusal(address) is None:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        nat64 = address in ipaddress.ip_network("64:ff9b::/96") if address.version == 6 else False
        assert inner.is_global if nat64 else address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_good_inside_an_ipv6_one(address: Any) -> None:
    number = int(address)
    for outer in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80):
        if address_refusal(address) is not None:
            assert address_refusal(ipaddress.IPv6Address(outer)) is not None


def test_the_operator_opens_private_networks_but_never_metadata() -> None:
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    for text in ("10.0.0.1", "127.0.0.1", "203.0.113.80", "fd00::1", "::1"):
        assert address_refusal(ipaddress.ip_address(text), everything) is None
    for text in ("169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fd00:ec2::254", "::",
                 "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "168.63.129.16", "100.100.100.200"):  # fmt: skip
        assert address_refusal(ipaddress.ip_address(text), everything)
    some = (ipaddress.ip_network("10.1.0.0/16"),)
    assert address_refusal(ipaddress.ip_address("10.1.2.3"), some) is None
    assert address_refusal(ipaddress.ip_address("10.2.2.3"), some)


# --- the container's side


def test_programs_are_told_of_the_proxy_and_keep_off_it_for_the_gateway() -> None:
    environment = proxy_environment("t0ken", "8080")
    for name in ("HTTP_PROXY", "https_proxy", "npm_config_https_proxy"):
        assert environment[name] == "http://agent:t0ken@127.0.0.1:8080"
    assert environment["NO_PROXY"].split(",") == ["127.0.0.1", "localhost", "::1"]
    assert "-Dhttps.proxyPassword=t0ken" in environment["MAVEN_OPTS"].split()
