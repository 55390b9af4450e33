#!/usr/bin/env bash
# Provide what the tests on real parts need: Redis, PostgreSQL, Chromium, git, Git LFS, a Docker engine, its base image.
#
#   tests/provision.sh           install and start what is missing, where this user may (root, apt-get)
#   tests/provision.sh --check   only tell what is there
#   tests/provision.sh --strict  as the first, but exit 1 when something is missing at the end (for CI)
#
# What cannot be provided is named with the reason, and the exit code is 0: the tests that need it are skipped
# by name. Safe to repeat; a second run only looks. An engine that answers is used as it is, never replaced.
set -uo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

SUITE=bookworm
BASE_IMAGE=debian:bookworm-slim
PULL_TIMEOUT=20       # seconds
APT_TIMEOUT=900       # seconds, for all packages together
ENGINE_TIMEOUT=60     # seconds until a started dockerd must answer
TMPFS_NEEDED=8        # GiB free in /dev/shm before the engine's files are laid there

mode=${1:-}
case $mode in
  "" | --check | --strict) ;;
  *) echo "usage: tests/provision.sh [--check | --strict]" >&2; exit 2 ;;
esac

log=$(mktemp "${TMPDIR:-/tmp}/provision.XXXXXX.log") || exit 1
scratch=""            # debootstrap's folder
policy=""             # our policy-rc.d while packages are installed
declare -A why        # item -> why it is missing

cleanup() {
  [[ -z $policy ]] || rm -f "$policy"
  if [[ -n $scratch ]]; then
    mountpoint -q "$scratch" && umount "$scratch"
    rm -rf --one-file-system "$scratch"
  fi
  rm -f "$log"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf 'provision: %s\n' "$*"; }

# step TITLE COMMAND…: run it with its output in the log, print how long it took, show the log's end on failure
step() {
  local title=$1 start=$EPOCHREALTIME status=0
  shift
  printf 'provision: %s …' "$title"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  local seconds
  seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }')
  if ((status == 0)); then
    printf ' %s\n' "$seconds"
  else
    printf ' failed after %s (exit %s)\n' "$seconds" "$status"
    tail -n 25 "$log" | sed 's/^/    /'
  fi
  return "$status"
}

may_install() { ((EUID == 0)) && command -v apt-get >/dev/null; }

why_not() {
  if ((EUID != 0)); then echo "not root: install it yourself ($1)"
  else echo "no apt-get on this system: install it yourself ($1)"; fi
}

# --- what is here ----------------------------------------------------------------------------------------

has_git() { command -v git >/dev/null; }
has_git_lfs() { command -v git-lfs >/dev/null; }
has_ssh_keygen() { command -v ssh-keygen >/dev/null; }
has_ip() { command -v ip >/dev/null; }
has_redis() { command -v redis-server >/dev/null; }
has_postgresql() {
  command -v initdb >/dev/null && command -v postgres >/dev/null && return
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}
has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
has_client() { command -v docker >/dev/null; }
has_engine() { has_client && timeout 20 docker info >/dev/null 2>&1; }
has_image() { has_client && timeout 20 docker image inspect "$BASE_IMAGE" >/dev/null 2>&1; }

# --- packages --------------------------------------------------------------------------------------------

apt_run() {
  timeout "$APT_TIMEOUT" apt-get -y -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 \
    -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@"
}

# available PACKAGE: apt knows a version that can be installed
available() { [[ -n $(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([^(].*\)/\1/p') ]]; }

# The servers that come with the packages stay stopped: the tests start their own, on their own ports.
# https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
without_services() {
  local status=0
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  fi
  "$@" || status=$?
  [[ -z $policy ]] || rm -f "$policy"
  policy=""
  return "$status"
}

install() { # PACKAGE…: those of them that apt offers; fails when none is offered
  local package offered=()
  if [[ -z ${apt_updated:-} ]]; then
    step "apt-get update" apt_run update || true  # one dead source of many is no reason to stop
    apt_updated=yes
  fi
  for package in "$@"; do
    if available "$package"; then offered+=("$package"); else say "apt offers no package $package here"; fi
  done
  ((${#offered[@]})) || return 1
  step "installing ${offered[*]}" without_services apt_run install --no-install-recommends "${offered[@]}"
}

provide_packages() {
  local wanted=()
  has_git || wanted+=(git)
  has_git_lfs || wanted+=(git-lfs)
  has_ssh_keygen || wanted+=(openssh-client)
  has_ip || wanted+=(iproute2)
  has_redis || wanted+=(redis-server)
  has_postgresql || wanted+=(postgresql)
  has_chromium || wanted+=(chromium)
  ((${#wanted[@]})) || return 0
  # one by one when the common transaction fails, so that one broken package costs only itself
  install "${wanted[@]}" || { ((${#wanted[@]} > 1)) && for one in "${wanted[@]}"; do install "$one"; done; }
}

# --- the engine ------------------------------------------------------------------------------------------

# Where the engine keeps its files: in memory when there is plenty, because making many small files on such
# machines' disks is slow; else the engine's own default.
data_root() {
  local free
  [[ $(stat -f -c %T /dev/shm 2>/dev/null) == tmpfs ]] || return 1
  free=$(df --output=avail -k /dev/shm | tail -1)
  ((free > TMPFS_NEEDED * 1024 * 1024)) || return 1
  # /dev/shm is open to every user: a folder that somebody else made is not ours to use
  [[ ! -e /dev/shm/docker && ! -L /dev/shm/docker ]] || [[ ! -L /dev/shm/docker && -O /dev/shm/docker ]] || return 1
  echo /dev/shm/docker
}

start_engine() {
  local root args=() daemon pid_file=/var/run/docker.pid output=/var/log/conductor-dockerd.log tries
  if [[ -d /run/systemd/system ]] && systemctl cat docker.service >/dev/null 2>&1; then
    timeout "$ENGINE_TIMEOUT" systemctl start docker.service || return 1
  else
    # an id left over from an earlier life of this machine may by now belong to another program
    if [[ -f $pid_file && $(cat "/proc/$(cat "$pid_file")/comm" 2>/dev/null) != dockerd ]]; then
      rm -f "$pid_file"
    fi
    root=$(data_root) && args=(--data-root "$root")
    setsid nohup dockerd --pidfile "$pid_file" "${args[@]}" >"$output" 2>&1 </dev/null &
    daemon=$!
    echo "dockerd's log: $output"
  fi
  for ((tries = ENGINE_TIMEOUT * 4; tries > 0; tries--)); do
    has_engine && return 0
    if [[ -n ${daemon:-} ]] && ! kill -0 "$daemon" 2>/dev/null; then break; fi
    sleep 0.25
  done
  [[ ! -f $output ]] || tail -n 20 "$output"
  return 1
}

provide_engine() {
  has_engine && return 0
  if [[ -n ${DOCKER_HOST:-} ]]; then
    why[engine]="DOCKER_HOST is set to $DOCKER_HOST, and no engine answers there"
    return 1
  fi
  if ! may_install; then
    if ! has_client; then why[engine]=$(why_not "Docker Engine 20.10 or newer with its client")
    else why[engine]="it does not answer \`docker info\`: start it, or let this user reach it (group docker)"; fi
    return 1
  fi
  command -v dockerd >/dev/null || install docker.io || why[engine]="docker.io could not be installed"
  # Debian 13 and newer ship the client on its own
  has_client || install docker-cli || why[engine]="there is no docker client"
  command -v dockerd >/dev/null && has_client || return 1
  has_engine && return 0
  step "starting dockerd" start_engine || { why[engine]="dockerd does not start here (see above)"; return 1; }
  [[ ! -f /var/run/docker.pid ]] || say "dockerd runs as process $(cat /var/run/docker.pid) and stays"
}

# --- the base image --------------------------------------------------------------------------------------

# The Debian repositories that this machine itself uses for the suite, as lines of a sources.list
machine_sources() {
  apt-get indextargets --format "\$(ORIGIN) \$(CODENAME) \$(REPO_URI) \$(COMPONENT)" 'Identifier: Packages' |
    awk -v suite="$SUITE" '
      $1 == "Debian" && $4 == "main" && ($2 == suite || $2 == suite "-updates" || $2 == suite "-security") {
        print "deb", $3, $2, "main" }' | sort -u
}

make_scratch() {
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/base-image.XXXXXX") || return 1
  # in memory where mounting is allowed: ten times as fast, and devices are allowed there
  mount -t tmpfs -o size=2g,mode=755 tmpfs "$scratch" 2>/dev/null || true
}

bootstrap() {
  local sources mirror=() keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  sources=$(machine_sources)
  # none on another distribution: debootstrap then uses the mirror it has built in
  mirror=($(awk -v suite="$SUITE" '$3 == suite { print $2; exit }' <<<"$sources"))
  timeout "$APT_TIMEOUT" debootstrap --variant=minbase --include=ca-certificates --merged-usr \
    --keyring="$keyring" --force-check-gpg "$SUITE" "$scratch/root" "${mirror[@]}" || return 1
  ((${#mirror[@]} == 0)) || printf '%s\n' "$sources" >"$scratch/root/etc/apt/sources.list"
  # slim, as the published image: no manuals now, none later
  cat >"$scratch/root/etc/dpkg/dpkg.cfg.d/slim" <<'SLIM'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
SLIM
  find "$scratch/root/usr/share/doc" -type f ! -name copyright -delete
  rm -rf "$scratch"/root/usr/share/{info,locale,man}/* "$scratch"/root/var/lib/apt/lists/* \
    "$scratch"/root/var/cache/apt/*.bin "$scratch"/root/var/cache/apt/archives/*.deb \
    "$scratch"/root/var/log/bootstrap.log "$scratch"/root/var/log/apt/* "$scratch"/root/etc/resolv.conf \
    "$scratch"/root/etc/hostname
}

import_image() {
  tar -C "$scratch/root" --numeric-owner --one-file-system -c . | timeout 300 docker import \
    --change 'CMD ["bash"]' \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change "LABEL agent-conductor.made-by=debootstrap agent-conductor.suite=$SUITE" \
    - "$BASE_IMAGE"
}

provide_image() {
  has_image && return 0
  step "pulling $BASE_IMAGE" timeout "$PULL_TIMEOUT" docker pull "$BASE_IMAGE" && return 0
  if ! may_install; then
    why[image]="it could not be pulled, and $(why_not "docker pull $BASE_IMAGE, or debootstrap and docker import")"
    return 1
  fi
  why[image]="it could neither be pulled nor made with debootstrap (see above)"
  if ! command -v debootstrap >/dev/null || [[ ! -f /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
    install debootstrap debian-archive-keyring || return 1
  fi
  step "making a scratch folder" make_scratch &&
    step "debootstrap $SUITE" bootstrap &&
    step "importing $BASE_IMAGE" import_image || return 1
  unset 'why[image]'
}

# --- all of it -------------------------------------------------------------------------------------------

begin=$EPOCHREALTIME
if [[ $mode != --check ]]; then
  if may_install; then provide_packages; fi
  provide_engine && provide_image
  has_engine || why[image]="there is no Docker engine to hold it"
fi

missing=0
report() { # ITEM TEXT WHY CHECK
  if "$4"; then say "$2: there"; return; fi
  missing=$((missing + 1))
  say "$2: MISSING, ${why[$1]:-$3}. Tests that need it are skipped."
}
reason() { if [[ $mode == --check ]]; then echo "run tests/provision.sh"
  elif may_install; then echo "its installation failed (see above)"; else why_not "$1"; fi; }

report git "git" "$(reason git)" has_git
report git-lfs "git-lfs" "$(reason git-lfs)" has_git_lfs
report openssh-client "ssh-keygen" "$(reason openssh-client)" has_ssh_keygen
report iproute2 "ip" "$(reason iproute2)" has_ip
report redis "redis-server" "$(reason redis-server)" has_redis
report postgresql "PostgreSQL" "$(reason postgresql)" has_postgresql
report chromium "Chromium" "$(reason chromium)" has_chromium
report engine "Docker engine" "$(reason 'Docker Engine 20.10 or newer')" has_engine
report image "base image $BASE_IMAGE" "$(reason "docker pull $BASE_IMAGE")" has_image
say "$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }'), $missing missing"

if [[ $mode == --strict ]] && ((missing)); then exit 1; fi
exit 0
