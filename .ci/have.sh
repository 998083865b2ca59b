# Finds or installs the programs that a step needs. Sourced by the other scripts.
# shellcheck shell=bash

can_install=
if [ "$(id -u)" = 0 ] && grep -qi '^ID.*debian' /etc/os-release 2>/dev/null; then can_install=1; fi

# lacking WHAT: prints that a step is skipped, and fails.
lacking() {
  echo "skipped: $1 is missing and cannot be installed here"
  return 1
}

updated=
# have PROGRAM PACKAGE...: succeeds if PROGRAM exists; on Debian and as root it first installs the packages if needed.
have() {
  local program=$1; shift
  command -v "$program" >/dev/null && return
  if [ -n "$can_install" ]; then
    [ -n "$updated" ] || { apt-get update -qq || true; updated=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null || true
    command -v "$program" >/dev/null && return
  fi
  lacking "$program"
}
