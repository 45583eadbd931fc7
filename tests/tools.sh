#!/usr/bin/env bash
# Install what tests need beside Python (tests/tools.txt), as root on Debian; elsewhere name what is missing.
# Never fails: a test skips itself, with the command that helps, where a tool is missing.
set -uo pipefail
cd "$(dirname "$0")"

packages=$(grep -v '^#' tools.txt | while read -r program package; do
  case $program in
    /*) [ -e "$program" ] ;;
    *) command -v "$program" >/dev/null ;;
  esac || echo "$package"
done | sort -u | tr '\n' ' ')
[ -n "${packages// /}" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Tests need Debian packages that are not installed. Installing: $packages"
  # shellcheck disable=SC2086 # a list of words
  if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null; then
    exit 0
  fi
  echo "apt-get failed; tests that need a missing tool are skipped."
else
  echo "Tests that need the following are skipped. To run them: sudo apt-get install $packages"
fi
