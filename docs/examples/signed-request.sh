#!/usr/bin/env bash
# Sends a request to Bulkhead, signed with an Ed25519 key (RFC 9421, RFC 9530). It needs curl and openssl 3.
#
#   openssl genpkey -algorithm ed25519 -out private.pem
#   openssl pkey -in private.pem -pubout                  # the public key, for `signing` when the API key is made
#
#   BULKHEAD_KEY=bh_live_…  BULKHEAD_KEY_ID=key_…  BULKHEAD_PRIVATE_KEY=private.pem \
#     signed-request.sh POST https://bulkhead.example.com/api/v1/orgs/acme/teams '{"name":"Support"}'
#
# What else curl should send stands in CURL_OPTIONS. It prints the answer, and ends as `curl --fail-with-body` does.
set -euo pipefail

method=$1 url=$2 body=${3-}
created=$(date +%s)
nonce=$(openssl rand -hex 16)

# The lines that are signed: each component with its value, in the order in which `signature-input` names them.
components='"@method" "@target-uri"'
base="\"@method\": ${method}"$'\n'"\"@target-uri\": ${url}"$'\n'
send=()
if [ -n "${body}" ]; then
  digest="sha-256=:$(printf %s "${body}" | openssl dgst -sha256 -binary | openssl base64 -A):"
  components+=' "content-digest"'
  base+="\"content-digest\": ${digest}"$'\n'
  send=(--header "content-digest: ${digest}" --header 'content-type: application/json' --data-binary "${body}")
fi
input="(${components});created=${created};nonce=\"${nonce}\";keyid=\"${BULKHEAD_KEY_ID}\";tag=\"bulkhead\""
base+="\"@signature-params\": ${input}"

# openssl reads what it signs with Ed25519 from a file.
text=$(mktemp)
trap 'rm -f "${text}"' EXIT
printf %s "${base}" >"${text}"
signature=$(openssl pkeyutl -sign -rawin -inkey "${BULKHEAD_PRIVATE_KEY}" -in "${text}" | openssl base64 -A)

# The bearer's text is given in a file, since everybody on the machine sees a command's arguments.
exec 3< <(printf 'header = "authorization: Bearer %s"\n' "${BULKHEAD_KEY}")
# shellcheck disable=SC2086
curl --silent --show-error --fail-with-body --config /dev/fd/3 --request "${method}" "${url}" \
  --header "signature-input: sig=${input}" --header "signature: sig=:${signature}:" "${send[@]}" ${CURL_OPTIONS-}
