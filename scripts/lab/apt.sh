# Sourced: an apt of our own, beside the system's. It has its own lists and an empty package
# database, knows both architectures and installs nothing; so the system's apt is neither read nor
# changed, packages of any Debian release can be had, and signatures are checked as ever.
# shellcheck shell=bash

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# $DEBIAN_MIRROR, or the machine's own mirror on Debian, or the one that debootstrap knows.
debian_mirror() {
    local id codename found=""
    # shellcheck source=/dev/null
    read -r id codename < <(. /etc/os-release && echo "$ID ${VERSION_CODENAME:-}")
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        found="$DEBIAN_MIRROR"
    elif [ "$id" = debian ]; then
        found=$(apt-get indextargets --format "\$(REPO_URI) \$(RELEASE) \$(COMPONENT)" \
            'Created-By: Packages' | awk -v r="$codename" '$2 == r && $3 == "main" && !n++ {print $1}')
    else
        found=$(grep -shE '^\s*(default_mirror |DEF_MIRROR=)' \
            /usr/share/debootstrap/scripts/{"$LAB_SUITE",sid,debian-common} /usr/sbin/debootstrap |
            grep -oE 'https?://[^" ]+/debian\b' | awk '!n++') || true
    fi
    [ -n "$found" ] || die "no Debian mirror known: set DEBIAN_MIRROR"
    echo "$found"
}

# private_apt FOLDER [SUITE]: makes the private apt in FOLDER, with Debian SUITE as its source or
# else with the machine's own sources, and points every apt command after this at it.
private_apt() {
    local apt="$1" suite="${2:-}" native
    native=$(debian_arch "$BUILD_ARCH")
    mkdir -p "$apt"/{lists/partial,cache/archives/partial}
    : >"$apt/status"
    {
        if [ -n "$suite" ]; then
            mkdir -p "$apt"/etc/{apt.conf.d,preferences.d}
            echo "deb [arch=amd64,arm64 signed-by=$KEYRING] $(debian_mirror) $suite main" \
                >"$apt/etc/sources.list"
            echo "Dir::Etc \"$apt/etc\";"
            # Proxies and the like stay as the machine has them.
            apt-config dump | grep -E '^Acquire::(http|https)\b' || true
        fi
        # Lists of sid expire after a week, and mirrors may be behind: 90 days, in seconds.
        [ "$suite" != sid ] || echo 'Acquire::Min-ValidTime "7776000";'
        cat <<EOF
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Architecture "$native";
APT::Architectures { "amd64"; "arm64"; };
APT::Install-Recommends "0";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
EOF
    } >"$apt/apt.conf"
    export APT_CONFIG="$apt/apt.conf"
    say "reading package lists"
    quietly apt-get -q update
}

# Runs a command and shows its output only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || {
        printf '%s\n' "$output" >&2
        die "failed: $*"
    }
}
