#!/usr/bin/env bash
# Sets up what the WebGPU tests need where there is no GPU, on Debian 12 (x86_64 or arm64): lavapipe 25 (Mesa's CPU driver for Vulkan, with shader-f16;
# from bookworm-backports, unpacked into a private folder, no system package changed), and Debian's chromium, whose SwiftShader serves Node and whose
# browser serves the browser tests. Run again, it does only what is missing. Prints three lines: lavapipe=ICD, swiftshader=ICD, chromium=binary.
#
# Usage: scripts/webgpu-drivers.sh [--check]     --check installs nothing: it prints what is there, exit code 1 if anything is missing
# LOWBIT_DRIVERS: the private folder (default: node_modules/.cache/webgpu of the project)
# Elsewhere: install Vulkan drivers by your system's own means (Mesa 24 or later has lavapipe as mesa-vulkan-drivers), Chromium or Chrome, and set
# LOWBIT_LAVAPIPE, LOWBIT_SWIFTSHADER (paths of ICD files) and LOWBIT_CHROMIUM (path of the browser): each one that is set is taken as it is.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
prefix="${LOWBIT_DRIVERS:-$root/node_modules/.cache/webgpu}"
lavapipe="${LOWBIT_LAVAPIPE:-$prefix/lvp.json}"
swiftshader="${LOWBIT_SWIFTSHADER:-/usr/lib/chromium/vk_swiftshader_icd.json}"
chromium="${LOWBIT_CHROMIUM:-/usr/bin/chromium}"
report() {
  local missing=0 name path
  for name in lavapipe swiftshader chromium; do
    path="${!name}"
    if [ -e "$path" ]; then echo "$name=$path"; else missing=1; fi
  done
  return $missing
}
loader() { ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; }
if [ "${1:-}" = "--check" ]; then report; exit $?; fi
if loader && report >/dev/null; then report; exit 0; fi

die() {
  echo "webgpu-drivers: $1" >&2
  echo "Install by your system's means: a Vulkan loader, lavapipe (Mesa 24 or later), and Chromium; then set LOWBIT_LAVAPIPE and LOWBIT_SWIFTSHADER to" >&2
  echo "the ICD files (.json) and LOWBIT_CHROMIUM to the browser. A machine with a GPU and its driver needs none of these: npx vitest run test/gpu." >&2
  exit 1
}
release=none; codename=none
if [ -r /etc/os-release ]; then
  release="$(. /etc/os-release; echo "${ID:-none}")"
  codename="$(. /etc/os-release; echo "${VERSION_CODENAME:-none}")"
fi
[ "$release" = debian ] && [ "$codename" = bookworm ] || die "expected Debian 12 (bookworm), got $release $codename."
command -v apt-get >/dev/null || die "expected apt-get, found none."
sudo=()
if [ "$(id -u)" != 0 ]; then
  if sudo -n true 2>/dev/null; then sudo=(sudo -n); else die "expected root or sudo without a password, to install libvulkan1, libllvm15 and chromium. Run: sudo $0"; fi
fi

packages=()
loader || packages+=(libvulkan1)
[ -n "${LOWBIT_LAVAPIPE:-}" ] || dpkg -s libllvm15 >/dev/null 2>&1 || packages+=(libllvm15)
{ [ -e "$swiftshader" ] && [ -e "$chromium" ]; } || packages+=(chromium)
if [ "${#packages[@]}" -gt 0 ]; then
  "${sudo[@]}" apt-get update -qq >&2
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
fi

if [ ! -e "$lavapipe" ]; then
  mkdir -p "$prefix"/{sources,lists/partial,cache/archives/partial,debs}
  # the machine's own mirror, with the backports suite added
  if [ -e /etc/apt/sources.list.d/debian.sources ]; then
    sed -E 's/^(Suites: bookworm .*)$/\1 bookworm-backports/' /etc/apt/sources.list.d/debian.sources >"$prefix/sources/debian.sources"
  else
    printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' >"$prefix/sources/debian.sources"
  fi
  apt=(apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$prefix/sources" -o Dir::State::lists="$prefix/lists" -o Dir::Cache="$prefix/cache")
  [ "$(id -u)" != 0 ] || apt+=(-o APT::Sandbox::User=root)
  "${apt[@]}" update -qq >&2
  (cd "$prefix/debs" && "${apt[@]}" download -qq mesa-vulkan-drivers/bookworm-backports libdrm2/bookworm-backports libdrm-amdgpu1/bookworm-backports >&2)
  for deb in "$prefix"/debs/*.deb; do dpkg -x "$deb" "$prefix"; done
  library="$(ls "$prefix"/usr/lib/*/libvulkan_lvp.so)"
  if LD_LIBRARY_PATH="$(dirname "$library")" ldd "$library" | grep 'not found' >&2; then die "lavapipe lacks the libraries above."; fi
  rm -rf "$prefix"/{sources,lists,cache,debs}
  # written last and at once: an interrupted run starts again
  printf '{"ICD":{"api_version":"1.4.305","library_path":"%s"},"file_format_version":"1.0.0"}\n' "$library" >"$lavapipe.partial"
  mv "$lavapipe.partial" "$lavapipe"
fi
report || die "something is still missing."
