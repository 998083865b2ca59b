# Programs that a step needs, for the scripts beside: on Debian and as root what is missing is installed.
# shellcheck shell=bash

can_install=
if [ "$(id -u)" = 0 ] && grep -qi '^ID.*debian' /etc/os-release 2>/dev/null; then can_install=1; fi

# lacking WHAT: a note, and false.
lacking() {
  echo "skipped: $1 is missing and cannot be installed here"
  return 1
}

updated=
# have PROGRAM PACKAGE...: whether PROGRAM exists, if need be after installing the packages.
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
