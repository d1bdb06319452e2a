"""Renders a Helm chart with Helm's own engine, as JSON from file name to text.

render.py CHART NAMESPACE VALUES_JSON; needs the package helm-python-sdk (`cargo xtask manifests`).
"""

import json
import sys

from helm_python import Chart

chart, namespace, values = sys.argv[1:]
files = Chart.load(chart).render(json.loads(values), name="ebbtide", namespace=namespace)
json.dump(files, sys.stdout)
