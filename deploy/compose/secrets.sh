#!/bin/sh
# Makes the passwords of `docker compose up`, once, on a volume that holds nothing else; each file can be read by the one account
# that needs it. So nobody has to think of one, none is in the repository, and none is in an environment.
#
#   secrets.sh [FOLDER [OWNER-OF-POSTGRESQL OWNER-OF-THE-AGENT]]
set -eu
umask 077
folder=${1:-/run/secrets/syncagent}
postgres=${2:-999:999}
agent=${3:-10001:10001}

for site in berlin tokyo lima; do
  here=$folder/$site
  [ ! -e "$here/made" ] || continue
  mkdir -p "$here/database" "$here/agent"
  head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$here/database/superuser"
  head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$here/database/agent"
  cp "$here/database/agent" "$here/agent/password"
  chmod 0400 "$here"/*/*
  chmod 0711 "$folder" "$here"
  chown -R "$postgres" "$here/database"
  chown -R "$agent" "$here/agent"
  : >"$here/made"
done
