#!/bin/sh
# ensure.sh PROBE PACKAGE...: unless the shell command PROBE succeeds, installs the Debian packages, where that can be
# done without a question: by root, with apt. Elsewhere it says what is missing; what needs it has the last word.
probe=$1
shift
sh -c "$probe" >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update >/dev/null && apt-get -qq install --yes --no-install-recommends "$@" >/dev/null && exit 0
fi
echo "Not installed, and could not be: $*" >&2
