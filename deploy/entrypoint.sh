#!/bin/sh
# One site in a container: becomes a site at its first start, goes on with that where it was interrupted, and then is the
# site's agent. `docker-compose.yml` and `deploy/kubernetes/` start it; it needs nothing but sh and syncagent.
#
#   SITE_NAME           the site's name
#   SITE_DSN            its database, as postgresql://user@host/database, without a password
#   SITE_PASSWORD_FILE  holds the password; it goes to a password file of the home, never to a command line or the environment
#   SITE_LISTEN         HOST:PORT that the agent listens on; default 0.0.0.0:7400
#   SITE_ADVERTISE      HOST:PORT that the others dial; default SITE_NAME:7400
#   SITE_PEER           HOST:PORT of a member to join; without it the site is the first of a cluster
#   SITE_TOKEN_FILE     where the token for that is, or will be; kept by an operator, or written by the first site:
#   SITE_INVITATIONS    a folder that all share. Whoever can write there can become a member: for one host, not for many
#   SITE_TABLES         what the first site attaches, once: names of tables, or --all
#
# Arguments are given to `syncagent run`.
set -eu
umask 077

home=${SYNCAGENT_HOME:-/var/lib/syncagent}
export SYNCAGENT_HOME="$home"
listen=${SITE_LISTEN:-0.0.0.0:7400}
invitations=${SITE_INVITATIONS:-}

say() { echo "entrypoint: $*" >&2; }
fail() { say "$*"; exit 1; }

[ -n "${SITE_NAME:-}" ] || fail "SITE_NAME is not set: the site needs a name"
[ -n "${SITE_DSN:-}" ] || fail "SITE_DSN is not set: write it as postgresql://user@host/database"
case $SITE_DSN in
  *://*:*@*) fail "SITE_DSN holds a password: put that into a file, and name it in SITE_PASSWORD_FILE" ;;
esac
advertise=${SITE_ADVERTISE:-$SITE_NAME:7400}
request=$invitations/$SITE_NAME.request
token=${SITE_TOKEN_FILE:-$invitations/$SITE_NAME.token}

# The password as libpq and the agent's driver read it: a file of its owner alone, made anew at each start.
dsn=$SITE_DSN
if [ -n "${SITE_PASSWORD_FILE:-}" ]; then
  [ -r "$SITE_PASSWORD_FILE" ] || fail "$SITE_PASSWORD_FILE cannot be read: it must hold the password of SITE_DSN"
  mkdir -p "$home"
  sed -e 's/[\\:]/\\&/g' -e 's/^/*:*:*:*:/' -e q "$SITE_PASSWORD_FILE" >"$home/.pgpass.new"
  mv "$home/.pgpass.new" "$home/pgpass"
  case $dsn in
    *\?*) dsn="$dsn&passfile=$home/pgpass" ;;
    *) dsn="$dsn?passfile=$home/pgpass" ;;
  esac
fi

found() {
  say "$SITE_NAME becomes the first site of a cluster"
  syncagent init --dsn "$dsn" --name "$SITE_NAME" --listen "$listen" --advertise "$advertise" >&2
  [ -z "$invitations" ] || rm -f "$invitations"/*.token  # of a cluster that is gone
}

# The token is kept until the site is a member: whoever was killed between the two asks with the same one again.
join() {
  if [ -z "${SITE_TOKEN_FILE:-}" ] && [ -n "$invitations" ]; then
    find "$invitations" -name "$SITE_NAME.token" -mmin +50 -delete
    : >"$request"
  fi
  [ -e "$home/config.toml" ] || await_token
  say "$SITE_NAME joins the cluster of $SITE_PEER"
  SYNCAGENT_TOKEN=$(cat "$token" 2>/dev/null || true)
  [ -z "$SYNCAGENT_TOKEN" ] || export SYNCAGENT_TOKEN
  syncagent join --peer "$SITE_PEER" --dsn "$dsn" --name "$SITE_NAME" \
    --listen "$listen" --advertise "$advertise" --yes >&2
  unset SYNCAGENT_TOKEN
  [ -z "$invitations" ] || rm -f "$request" "$token"
}

await_token() {
  [ -s "$token" ] || say "waiting for a token in $token: \`syncagent invite\` at a member prints one"
  until [ -s "$token" ]; do sleep 0.5; done
}

# Beside the first site's agent, as long as that lives: attaches tables, and lets in who has left a request.
serve() {
  while kill -0 "$1" 2>/dev/null; do
    if [ -n "${SITE_TABLES:-}" ] && [ ! -e "$home/attached" ]; then
      # shellcheck disable=SC2086  # several words are several tables
      syncagent attach $SITE_TABLES >&2 && : >"$home/attached"
    fi
    for wanted in "$invitations"/*.request; do
      invited=${wanted%.request}.token
      if [ -e "$wanted" ] && [ ! -s "$invited" ]; then
        if syncagent invite >"$invited.new" 2>/dev/null; then mv "$invited.new" "$invited"; fi
      fi
    done
    sleep 1
  done
}

if [ ! -e "$home/config.toml" ] || [ -e "$home/joining.json" ]; then
  if [ -n "${SITE_PEER:-}" ]; then join; else found; fi
fi
if [ -z "${SITE_PEER:-}" ] && [ -n "$invitations" ]; then
  serve $$ &
fi
exec syncagent run "$@"
