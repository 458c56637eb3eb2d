"""Waits for the demo, makes some things in its organization, and writes schemathesis' configuration for them.

prepare.py DEMO_JSON CONFIGURATION URL

URL is where the demo listens; what it calls itself is an address that nobody answers at. `cargo xtask fuzz` calls it. Only the standard library is used.
"""

import json
import sys
import time
import urllib.error
import urllib.request

PATIENCE_S = 180

# What schemathesis says and we mean otherwise, and why.
CHECKS = """
# Ids, cursors, names and JSON inside of JSON are stricter than a schema can say: what it allows may be refused, with a documented problem.
[checks.positive_data_acceptance]
enabled = false

# A missing `if-match` is 428 (RFC 6585), and what is not there is looked for first.
[checks.missing_required_header]
expected-statuses = [400, 401, 403, 404, 406, 415, 422, 428]

# … and whether it is the one that was read, before its values: 412. The rest are schemathesis' own.
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 415, 422, 428, 429]

# Its bodies are WebAssembly, of which random bytes test nothing: tests/runtime has hostile packages.
[[operations]]
include-operation-id = "upload_plugin"
enabled = false

# Each item of a batch is answered by itself, also one that is none (AuthZEN 1.0, 7.2).
[[operations]]
include-operation-id = "evaluate_accesses"
[operations.checks.negative_data_rejection]
enabled = false

# These would shut out the key that asks.
[[operations]]
include-operation-id = "replace_ip_allow_list"
enabled = false
[[operations]]
include-operation-id = "rotate_api_key"
enabled = false
"""


class Api:
    def __init__(self, demo):
        self.url, self.org, self.key = demo["url"], demo["org"], demo["api_key"]

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("authorization", f"Bearer {self.key}")
        if data is not None:
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def of_org(self, method, path, body=None):
        return self.ask(method, f"/api/v1/orgs/{self.org}/{path}", body)


def demo_of(path, url):
    """What the demo says of itself, once it is ready, with the address where it listens in the place of its public one."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            public = json.loads(text)["url"]
            with urllib.request.urlopen(url + "/readyz", timeout=2):
                return json.loads(text.replace(public, url))
        except (OSError, ValueError):
            time.sleep(0.2)
    raise SystemExit(f"the demo is not ready after {PATIENCE_S} seconds")


def deliver(url):
    """Starts a run, as GitHub would."""
    repository = {"full_name": "acme/app"}
    issue = {"number": 1, "title": "Crash", "html_url": "https://github.com/acme/app/issues/1", "body": "It stops.", "labels": []}
    body = json.dumps({"action": "opened", "issue": issue, "repository": repository}).encode()
    headers = {"content-type": "application/json", "x-github-event": "issues"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["run"]


def things(api, demo):
    """Ids of things that are there, by the name that paths give them."""
    workflow = api.of_org("GET", "workflows")["items"][0]["id"]
    run = deliver(next(iter(demo["workflows"].values()))["webhook_url"])
    key = {"name": "fuzzed", "permissions": ["org.read"]}
    return {
        "org": api.org,
        "workflow": workflow,
        "run": run,
        "api_key": api.of_org("POST", "api-keys", key)["id"],
        "team": api.of_org("POST", "teams", {"name": "Fuzzed"})["id"],
        "role": api.of_org("POST", "roles", {"name": "Fuzzed", "permissions": ["org.read"]})["role"],
        "plugin": api.of_org("GET", "plugins")["items"][0]["id"],
        "installation": api.of_org("GET", "installations")["items"][0]["id"],
    }


def main():
    demo = demo_of(sys.argv[1], sys.argv[3])
    api = Api(demo)
    lines = [f'"path.{name}" = "{value}"' for name, value in things(api, demo).items() if value]
    text = "[parameters]\n" + "\n".join(lines) + f'\n\n[auth.openapi.api_key]\nbearer = "{api.key}"\n' + CHECKS
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(text)


main()
