#!/bin/sh
# Builds engine.plan of model.onnx with trtexec, on the device that it is for.
# It needs nothing but a POSIX shell and what JetPack (or a TensorRT package) brings.
set -eu

#@SETTINGS@

# The name of a power mode, however it is written.
plain() {
    echo "$1" | tr '[:lower:]' '[:upper:]' | sed 's/^MODE_//; s/ //g'
}

usage() {
    cat <<TEXT
usage: sh build.sh [options]

Builds engine.plan of $MODEL for $DEVICE_TITLE with ${TENSORRT:+TensorRT $TENSORRT and }$TOOL.

  --workspace MIB   memory that the builder may try kernels with (default: $WORKSPACE_MIB)
  --any-version     build with another TensorRT than the graph was made for
  --any-mode        do not warn of another power mode
  --trtexec FILE    the builder (default: from PATH, else /usr/src/tensorrt/bin/trtexec)
  --verbose         show all of the builder's log, not the end of it where it fails
  -h, --help        this text
TEXT
}

fail() {
    echo "build.sh: $1" >&2
    [ $# -lt 2 ] || echo "  $2" >&2
    exit 1
}

# Whether the builder's help names an option.
knows() {
    case $options in
        *"$1"*) return 0 ;;
        *) return 1 ;;
    esac
}

lacks() {
    echo "build.sh: warning: $builder has no option $1: $2" >&2
}

any_version=no any_mode=no verbose=no builder=
while [ $# -gt 0 ]; do
    case $1 in
        --workspace | --trtexec)
            [ $# -ge 2 ] || fail "$1 needs a value" "see sh build.sh --help"
            if [ "$1" = --trtexec ]; then builder=$2; else WORKSPACE_MIB=$2; fi
            shift
            ;;
        --any-version) any_version=yes ;;
        --any-mode) any_mode=yes ;;
        --verbose) verbose=yes ;;
        -h | --help) usage; exit 0 ;;
        *) fail "unknown option $1" "see sh build.sh --help" ;;
    esac
    shift
done
case $WORKSPACE_MIB in
    '' | 0* | *[!0-9]*) fail "--workspace is '$WORKSPACE_MIB'" "give a number of MiB" ;;
esac

if [ -n "$builder" ]; then
    case $builder in
        */*) [ -x "$builder" ] || fail "$builder is no program" ;;
        *) command -v "$builder" >/dev/null 2>&1 || fail "$builder is no program" ;;
    esac
    case $builder in
        /*) ;;
        */*) builder=$PWD/$builder ;;
    esac
elif command -v "$TOOL" >/dev/null 2>&1; then
    builder=$TOOL
elif [ -x "/usr/src/tensorrt/bin/$TOOL" ]; then
    builder=/usr/src/tensorrt/bin/$TOOL
else
    fail "$TOOL is neither in PATH nor in /usr/src/tensorrt/bin" "$INSTALL"
fi

cd "$(dirname "$0")"
[ -f "$MODEL" ] || fail "$MODEL is not here" "copy the whole folder to the device"

# The first line of its output is "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # ..."; from 10 on "v100300".
options=$("$builder" --help 2>&1) || true
found=$(printf '%s\n' "$options" | sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' | head -n 1)
if [ -z "$found" ]; then
    [ -z "$TENSORRT" ] ||
        echo "build.sh: warning: $builder does not say which TensorRT it is; the graph is for $TENSORRT" >&2
else
    if [ "$found" -ge 100000 ]; then
        found=$((found / 10000)).$((found / 100 % 100))
    else
        found=$((found / 1000)).$((found / 100 % 10))
    fi
    if [ -n "$TENSORRT" ] && [ "$found" != "$TENSORRT" ] && [ $any_version = no ]; then
        fail "this device has TensorRT $found, and the graph was made for $TENSORRT" \
            "compile again with --target $(again "$found"), or try it with --any-version"
    fi
fi

if [ "$DLA" = yes ]; then
    for node in /dev/nvhost-nvdla0 /dev/nvhost-ctrl-nvdla0 /dev/nvdla0; do
        [ ! -e $node ] || DLA=found
    done
    if [ "$DLA" = yes ]; then
        echo "build.sh: warning: no device file of a DLA was found; if the build fails, compile again without dla=true" >&2
    fi
fi

if [ -n "$POWER_MODE" ] && [ $any_mode = no ]; then
    # Kernels are chosen by timing them, so the engine is best built in the mode that it runs in.
    if command -v nvpmodel >/dev/null 2>&1; then
        mode=$(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p' | head -n 1) || mode=
        if [ -z "$mode" ]; then
            echo "build.sh: warning: nvpmodel does not say the power mode; figures are for $POWER_MODE" >&2
        elif [ "$(plain "$mode")" != "$(plain "$POWER_MODE")" ]; then
            echo "build.sh: warning: the power mode is $mode, and figures are for $POWER_MODE" >&2
            echo "  to change it: sudo nvpmodel -m NUMBER (the numbers are in /etc/nvpmodel.conf); this script does not" >&2
        fi
    else
        echo "build.sh: warning: there is no nvpmodel here, so the power mode is not known; figures are for $POWER_MODE" >&2
    fi
fi

temporary=engine.plan.$$.tmp
trap 'rm -f "$temporary"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Each option once: one that is given twice is refused.
set -- "--onnx=$MODEL" "--saveEngine=$temporary"
#@FLAGS@

echo "building engine.plan (some minutes; the log is build.log)"
if [ $verbose = yes ]; then
    status=0
    { "$builder" "$@" 2>&1 || echo "$?" >build.status; } | tee build.log
    if [ -f build.status ]; then
        status=$(cat build.status)
        rm -f build.status
    fi
else
    status=0
    "$builder" "$@" >build.log 2>&1 || status=$?
fi
if [ "$status" -ne 0 ] || [ ! -s "$temporary" ]; then
    [ $verbose = yes ] || grep -E '\[[EF]\]|[Ee]rror|FAILED' build.log | tail -n 12 >&2 || true
    less=$((WORKSPACE_MIB / 2))
    [ $less -gt 0 ] || less=
    if grep -qiE 'out ?of ?memory|insufficient memory|cudaMalloc|Killed' build.log || [ "$status" -eq 137 ]; then
        fail "the builder ran out of memory (exit status $status)" \
            "close other programs, add swap${less:+, or give it less to try kernels with: --workspace $less}"
    fi
    fail "the builder gave no engine (exit status $status)" "its log is build.log"
fi
mv "$temporary" engine.plan
echo "engine.plan is built; check it with: python3 check.py"
