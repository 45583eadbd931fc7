# ruff: noqa: S310, ANN001, ANN201, PTH123 - run by `helm test` with the standard library alone
"""Create a suspended experiment, wait until the operator accepts it, delete it: NAMESPACE NAME SECONDS."""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

namespace, name, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
secrets = "/var/run/secrets/kubernetes.io/serviceaccount"
with open(f"{secrets}/token") as file:
    token = file.read()
trusted = ssl.create_default_context(cafile=f"{secrets}/ca.crt")
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
url = f"https://{host}:{port}/apis/asysi.dev/v1alpha1/namespaces/{namespace}/scanexperiments"


def call(method, path="", body=None, fine=()):
    """Return the answer, {} where its code is fine; exits with the API server's own words when it refuses."""
    request = urllib.request.Request(
        url + path,
        json.dumps(body).encode() if body else None,
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=10, context=trusted) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in fine:
            return {}
        sys.exit(f"{method} {path or 'scanexperiments'}: {error.code} {error.read().decode()}")


experiment = {
    "apiVersion": "asysi.dev/v1alpha1",
    "kind": "ScanExperiment",
    "metadata": {"name": name},
    "spec": {
        "model": {"uri": "file:///nowhere"},
        "data": {"uri": "jsonl:///nowhere"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["*"]},
        "output": {"claim": "nowhere"},
        "lifecycle": {"suspend": True},
    },
}
call("DELETE", f"/{name}", fine=(404,))  # of a test that was killed
call("POST", body=experiment)
accepted = {}
deadline = time.monotonic() + seconds
while accepted.get("status") != "True" and time.monotonic() < deadline:
    time.sleep(0.5)
    conditions = call("GET", f"/{name}").get("status", {}).get("conditions", [])
    accepted = next((one for one in conditions if one["type"] == "Accepted"), {})
call("DELETE", f"/{name}")
if accepted.get("status") != "True":
    sys.exit(
        f"the operator did not accept an experiment in {seconds} s: {accepted or 'no condition Accepted'}"
    )
print("the operator accepts experiments")
