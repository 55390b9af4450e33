"""Packs the example payloads of the npm package @octokit/webhooks-examples into one small file.

Usage: npm pack @octokit/webhooks-examples@7.6.1 && tar xzf octokit-webhooks-examples-7.6.1.tgz
       python extract_webhooks_examples.py package/api.github.com/index.json
"""

import gzip
import json
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("webhooks-examples.json.gz")


def main(source: Path) -> None:
    examples = {entry["name"]: entry["examples"] for entry in json.loads(source.read_bytes())}
    text = json.dumps(examples, separators=(",", ":"))
    # `package` events carry the address of GitHub's package registry; nothing here depends on it
    text = text.replace(".pkg.github" + ".com", ".packages.example.com")
    TARGET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(
        f"{sum(map(len, examples.values()))} payloads of {len(examples)} events, {TARGET.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
