"""A Jetson in a folder: the files that the kernel and JetPack show, with programs that stand in for NVIDIA's.

`make_jetpack` writes the tree, which the agent reads instead of ``/`` (``GREENCC_AGENT_ROOT``). `FakeJetPack.rails`
starts a process that plays the power monitors: power rises with the processor time that builders and engines of this
tree really use. Nothing here is a measurement of a Jetson.

Run as ``python fake_jetpack.py ROOT`` it is that process, until its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DOUBLE = Path(__file__).parent / "trtexec_double.py"
_PERIOD_S = 0.02
_LOOK_S = 0.25
_VOLTS = 5.0


@dataclass(frozen=True)
class Module:
    """What differs between modules.

    Attributes:
        model: Of the device tree.
        compatible: Likewise.
        sm: Compute capability of the GPU.
        memory_kb: Of /proc/meminfo.
        rails: Label -> share of the power above idle that it carries; the first is the total where it is 1.
        idle_w: Total at rest, and `core_w` on top for each busy core.
        core_w: See `idle_w`.
        modes: Number and name of each power mode.
        default: Number of the mode after flashing.
        parts: ``CPU part`` of each core.
        iio: Rails as JetPack 4 shows them.
        gpu: Folder of the GPU's clock.
    """

    model: str
    compatible: tuple[str, ...]
    sm: int
    memory_kb: int
    rails: Mapping[str, float]
    idle_w: float
    core_w: float
    modes: tuple[tuple[int, str], ...]
    default: int
    parts: tuple[str, ...]
    iio: bool = False
    gpu: str = "17000000.gpu"


MODULES: Mapping[str, Module] = {
    "nano": Module(
        "NVIDIA Jetson Nano Developer Kit",
        ("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"),
        53,
        4059712,
        {"POM_5V_IN": 1.0, "POM_5V_GPU": 0.4, "POM_5V_CPU": 0.4},
        1.4,
        1.6,
        ((0, "MAXN"), (1, "5W")),
        0,
        ("0xd07",) * 4,
        iio=True,
        gpu="57000000.gpu",
    ),
    "xavier-nx": Module(
        "NVIDIA Jetson Xavier NX Developer Kit",
        ("nvidia,p3449-0000+p3668-0000", "nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"),
        72,
        7902000,
        {"VDD_IN": 1.0, "VDD_CPU_GPU_CV": 0.7, "VDD_SOC": 0.2},
        3.5,
        2.2,
        ((0, "MODE_15W_2CORE"), (1, "MODE_15W_4CORE"), (2, "MODE_15W_6CORE"), (3, "MODE_10W_2CORE")),
        3,
        ("0x004",) * 6,
        gpu="17000000.gv11b",
    ),
    "orin-nano": Module(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        87,
        7802904,
        {"VDD_IN": 1.0, "VDD_CPU_GPU_CV": 0.6, "VDD_SOC": 0.2},
        3.2,
        2.0,
        ((0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W")),
        1,
        ("0xd42",) * 6,
    ),
    "orin-nx": Module(
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
        ("nvidia,p3768-0000+p3767-0000-super", "nvidia,p3767-0000", "nvidia,tegra234"),
        87,
        16010000,
        {"VDD_IN": 1.0, "VDD_CPU_GPU_CV": 0.6, "VDD_SOC": 0.2},
        4.0,
        2.2,
        ((0, "MAXN_SUPER"), (1, "10W"), (2, "15W"), (3, "25W"), (4, "40W")),
        3,
        ("0xd42",) * 8,
    ),
    "agx-orin": Module(
        "NVIDIA Jetson AGX Orin Developer Kit",
        ("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
        87,
        64350000,
        {"VDD_GPU_SOC": 0.5, "VDD_CPU_CV": 0.3, "VIN_SYS_5V0": 0.2},
        8.0,
        3.0,
        ((0, "MAXN"), (1, "MODE_15W"), (2, "MODE_30W"), (3, "MODE_50W")),
        2,
        ("0xd42",) * 12,
    ),
    "thor": Module(
        "NVIDIA Jetson AGX Thor Developer Kit",
        ("nvidia,p3971-0080+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
        110,
        128800000,
        {"VIN": 1.0, "VDD_GPU": 0.5, "VDD_CPU_SOC_MSS": 0.3, "VIN_SYS_5V0": 0.2},
        25.0,
        4.0,
        ((0, "MAXN"), (1, "120W"), (2, "90W"), (3, "70W")),
        1,
        ("0xd83",) * 14,
        gpu="gpu-gpc-0",
    ),
}
# L4T, TensorRT's package and version, CUDA.
JETPACKS: Mapping[str, tuple[str, str, str, str]] = {
    "4.6.1": ("R32 (release), REVISION: 7.1", "libnvinfer8", "8.2.1-1+cuda10.2", "10.2.300"),
    "5.1": ("R35 (release), REVISION: 2.1", "libnvinfer8", "8.5.2-1+cuda11.4", "11.4.19"),
    "6.0": ("R36 (release), REVISION: 3.0", "libnvinfer8", "8.6.2.3-1+cuda12.2", "12.2.140"),
    "6.1": ("R36 (release), REVISION: 4.0", "libnvinfer10", "10.3.0.30-1+cuda12.5", "12.6.68"),
    "6.2": ("R36 (release), REVISION: 4.3", "libnvinfer10", "10.3.0.30-1+cuda12.5", "12.6.68"),
    "7.0": ("R38 (release), REVISION: 2.0", "libnvinfer10", "10.13.3.9-1+cuda13.0", "13.0.48"),
}

_NVPMODEL = """\
import json, os, re, sys

root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
status, double = root + "/var/lib/nvpmodel/status", root + "/var/lib/nvpmodel/double.json"
with open(root + "/etc/nvpmodel.conf") as file:
    modes = dict(re.findall(r"^< POWER_MODEL ID=(\\d+) NAME=(\\S+) >", file.read(), re.M))
with open(double) as file:
    told = json.load(file)
with open(status) as file:
    now = str(int(re.search(r"pmode:(\\d+)", file.read()).group(1)))
with open(root + "/var/lib/nvpmodel/log", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")

def warn(text):
    print("NVPM " + text, file=sys.stderr)

def set_mode(number):
    with open(status + ".new", "w") as file:
        file.write("pmode:%04d" % int(number))
    os.replace(status + ".new", status)

if sys.argv[1:] == ["-q"]:
    print("NV Power Mode: " + modes[now])
    print(now)
elif sys.argv[1:2] == ["-m"] and len(sys.argv) == 3:
    wanted = sys.argv[2]
    if told.get("fail"):
        warn("ERROR: " + told["fail"])
        sys.exit(1)
    if wanted not in modes:
        warn("ERROR: PM %s is not supported" % wanted)
        sys.exit(1)
    if int(wanted) in told.get("reboot", []):
        warn("WARN: Golden image context is already created")
        warn("WARN: Reboot required for changing to this power mode: " + wanted)
        warn("WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:")
        if sys.stdin.readline().strip() in ("YES", "yes"):
            set_mode(wanted)
            with open(root + "/var/lib/nvpmodel/rebooted", "w"):
                pass
            sys.exit(0)
        warn("ERROR: bad input!")
        warn("ERROR: optMask is 1, no request for power mode")
        sys.exit(1)
    set_mode(wanted)
else:
    warn("ERROR: invalid arguments")
    sys.exit(1)
"""


@dataclass
class FakeJetPack:
    """A Jetson's file system in `root`.

    Attributes:
        root: Where it begins.
        module: Which module it plays.
        home: The agent's folder on it.
    """

    root: Path
    module: Module
    home: Path
    _rails: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What makes an agent take this for its machine."""
        return {"GREENCC_AGENT_ROOT": str(self.root), "GREENCC_AGENT_HOME": str(self.home)}

    @property
    def mode(self) -> str:
        """The power mode in force."""
        number = int((self.root / "var/lib/nvpmodel/status").read_text().removeprefix("pmode:"))
        return dict(self.module.modes)[number]

    @property
    def nvpmodel_calls(self) -> list[str]:
        """Arguments of each call of nvpmodel."""
        log = self.root / "var/lib/nvpmodel/log"
        return log.read_text().splitlines() if log.exists() else []

    def set_mode(self, name: str) -> None:
        """As if a user had set it."""
        number = next(number for number, known in self.module.modes if known == name)
        (self.root / "var/lib/nvpmodel/status").write_text(f"pmode:{number:04d}")

    def nvpmodel(self, *, reboot: tuple[str, ...] = (), fail: str = "") -> None:
        """How nvpmodel behaves: modes that need a restart, or a message that it fails with."""
        numbers = [number for number, name in self.module.modes if name in reboot]
        told = {"reboot": numbers, "fail": fail}
        (self.root / "var/lib/nvpmodel/double.json").write_text(json.dumps(told))

    def trtexec(self, **settings: object) -> None:
        """Settings of the trtexec double (see it), such as ``pace=5``."""
        path = self.root / "usr/src/tensorrt/bin/trtexec.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    def write(self, files: Mapping[str, object], under: str = "") -> None:
        """Text files, each ending in a new line."""
        _write(self.root / under, files)

    def set_watts(self, total: float) -> None:
        """Fix the rails at a total; not while `rails` runs."""
        _show(self.root, self.module, total)

    def reboot(self) -> None:
        """All of its processes end at once, and the next boot has another ID."""
        self.kill()
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")

    def kill(self) -> None:
        """End the processes of agents of this tree, engines and jobs."""
        for _ in range(50):
            found = [pid for pid in members(self.root) if pid != os.getpid()]
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return
            time.sleep(0.02)

    @contextlib.contextmanager
    def rails(self) -> Iterator[None]:
        """Power monitors that follow what the engines do."""
        command = [sys.executable, "-S", str(Path(__file__)), str(self.root)]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GREENCC_AGENT")
        }
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
            try:
                yield
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait(10)


def make_jetpack(
    folder: Path,
    module: str = "orin-nano",
    jetpack: str = "6.2",
    *,
    mode: str | None = None,
    trtexec: bool = True,
    python: str = sys.executable,
) -> FakeJetPack:
    """Write a Jetson's file system.

    Args:
        folder: Where; made if it is missing.
        module: One of `MODULES`.
        jetpack: One of `JETPACKS`.
        mode: The power mode in force; default: that after flashing.
        trtexec: It has TensorRT's program.
        python: Runs the doubles; it has onnx, onnxruntime and greencc.
    """
    kind = MODULES[module]
    found = FakeJetPack(folder.resolve(), kind, folder.resolve() / "home/agent")
    (found.root / "home").mkdir(parents=True, exist_ok=True)
    (found.root / "run/lock").mkdir(parents=True)
    (found.root / "run/lock").chmod(0o1777)
    _machine(found)
    _software(found, jetpack)
    _monitors(found)
    _programs(found, jetpack, python, trtexec)
    (found.root / "var/lib/nvpmodel").mkdir(parents=True)
    found.set_mode(mode or dict(kind.modes)[kind.default])
    found.nvpmodel()
    found.set_watts(kind.idle_w)
    return found


def _machine(found: FakeJetPack) -> None:
    kind = found.module
    tree = found.root / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "model").write_text(kind.model + "\0")
    (tree / "compatible").write_text("".join(name + "\0" for name in kind.compatible))
    cores = "".join(
        f"processor\t: {number}\nBogoMIPS\t: 62.50\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp\n"
        f"CPU implementer\t: {'0x4e' if part == '0x004' else '0x41'}\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        f"CPU part\t: {part}\nCPU revision\t: 1\n\n"
        for number, part in enumerate(kind.parts)
    )
    free = kind.memory_kb * 3 // 4
    # Standing still: whoever asks what others use gets nothing.
    lines = ["cpu  1000 0 500 90000 10 0 5 0 0 0"]
    lines += [f"cpu{number} 100 0 50 9000 1 0 1 0 0 0" for number in range(len(kind.parts))]
    found.write(
        {
            "cpuinfo": cores,
            "meminfo": f"MemTotal: {kind.memory_kb} kB\nMemFree: {free} kB\nMemAvailable: {free} kB",
            "stat": "\n".join(lines),
            "loadavg": "0.08 0.03 0.01 1/412 2210",
            "uptime": "5321.07 30915.11",
            "sys/kernel/osrelease": "5.15.148-tegra",
            "sys/kernel/random/boot_id": uuid.uuid4(),
        },
        "proc",
    )
    for number, name in enumerate(("cpu-thermal", "gpu-thermal", "soc0-thermal", "cv0-thermal")):
        # Zones of units that are powered down show nonsense.
        celsius = -256000 if name == "cv0-thermal" else 46000 + 500 * number
        found.write({"type": name, "temp": celsius}, f"sys/class/thermal/thermal_zone{number}")
    for number in range(len(kind.parts)):
        clocks = {"min": 115200, "cur": 729600, "max": 1510400}
        files: dict[str, object] = {f"scaling_{name}_freq": value for name, value in clocks.items()}
        found.write(files | {"scaling_governor": "schedutil"}, f"sys/devices/system/cpu/cpu{number}/cpufreq")
    gpu = {"min_freq": 306000000, "cur_freq": 306000000, "max_freq": 624750000}
    found.write(gpu, f"sys/class/devfreq/{kind.gpu}")


def _software(found: FakeJetPack, jetpack: str) -> None:
    release, package, tensorrt, cuda = JETPACKS[jetpack]
    packages = {package: tensorrt, "libnvinfer-bin": tensorrt, "nvidia-l4t-core": "36.4.3-20250107174145"}
    status = [
        f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n"
        f"Description: of NVIDIA\n more about {name}\n"
        for name, version in packages.items()
    ]
    status.append("Package: libnvinfer7\nStatus: deinstall ok config-files\nVersion: 7.1.3-1+cuda10.2\n")
    modes = "\n\n".join(
        f"< POWER_MODEL ID={number} NAME={name} >\n"
        + "\n".join(f"CPU_ONLINE CORE_{core} 1" for core in range(len(found.module.parts)))
        + "\nCPU_A78_0 MIN_FREQ 729600\nCPU_A78_0 MAX_FREQ -1\n"
        "GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on\nGPU MIN_FREQ 0\nGPU MAX_FREQ -1\nEMC MAX_FREQ 0"
        for number, name in found.module.modes
    )
    conf = (
        "# < POWER_MODEL ID=id_num NAME=mode_name >\n"
        "# PARAM1 ARG11 ARG11_VAL\n\n"
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >\nCORE_0 /sys/devices/system/cpu/cpu0/online\n\n"
        f"{modes}\n\n"
        "# mandatory section to configure the default power mode\n"
        f"< PM_CONFIG DEFAULT={found.module.default} >\n"
    )
    found.write(
        {
            "nv_tegra_release": f"# {release}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025",
            "nvpmodel.conf": conf,
        },
        "etc",
    )
    found.write({"status": "\n".join(status)}, "var/lib/dpkg")
    if jetpack.startswith("4."):
        found.write({"version.txt": f"CUDA Version {cuda}"}, "usr/local/cuda")
    else:
        version = json.dumps({"cuda": {"name": "CUDA SDK", "version": cuda}})
        found.write({"version.json": version}, "usr/local/cuda")


def _monitors(found: FakeJetPack) -> None:
    """Folders of the power monitors; their values come from `_show`."""
    labels = list(found.module.rails)
    if found.module.iio:
        device = found.root / "sys/devices/i2c/6-0040"
        _write(device / "iio:device0", {f"rail_name_{n}": label for n, label in enumerate(labels)})
        _link(found.root / "sys/bus/i2c/drivers/ina3221x/6-0040", device)
        return
    if "VIN" in labels:
        folder = _chip(found.root, 3, "ina238", "2-0044")
        _write(folder, {"label": "VIN"})
        labels.remove("VIN")
    folder = _chip(found.root, 1, "ina3221", "1-0040")
    _write(
        folder,
        {"update_interval": 18, "in7_label": "sum of shunt voltages", "in7_input": 120, "curr4_input": 1},
    )
    _write(folder, {f"in{number}_label": label for number, label in enumerate(labels, start=1)})


def _chip(root: Path, number: int, name: str, device: str) -> Path:
    """A chip on an I2C bus, linked from the class of monitors."""
    home = root / f"sys/devices/platform/bus/i2c-1/{device}"
    folder = home / f"hwmon/hwmon{number}"
    _write(folder, {"name": name})
    _link(folder / "device", home)
    _link(root / f"sys/class/hwmon/hwmon{number}", folder)
    return folder


def _programs(found: FakeJetPack, jetpack: str, python: str, trtexec: bool) -> None:
    nvpmodel = found.root / "usr/sbin/nvpmodel"
    nvpmodel.parent.mkdir(parents=True)
    nvpmodel.write_text(f"#!{python} -SE\n{_NVPMODEL}")
    nvpmodel.chmod(0o755)
    if not trtexec or not DOUBLE.exists():
        return
    folder = found.root / "usr/src/tensorrt/bin"
    folder.mkdir(parents=True)
    for file in (DOUBLE, DOUBLE.with_name("trtexec_options.py")):
        shutil.copy(file, folder / file.name)
    version = ".".join(JETPACKS[jetpack][2].split("-")[0].split(".")[:3])
    (folder / "trtexec.json").write_text(
        json.dumps({"version": version, "sm": found.module.sm, "gpu": found.module.model.split()[2]})
    )
    # It imports greencc's linter from where these tests stand.
    here = Path(__file__).parents[2]
    (folder / "trtexec").write_text(
        f'#!/bin/sh\nPYTHONPATH="{here}" OMP_NUM_THREADS=1 exec "{python}" "{folder}/trtexec_double.py" "$@"\n'
    )
    (folder / "trtexec").chmod(0o755)


def _write(folder: Path, files: Mapping[str, object]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _show(root: Path, module: Module, total: float) -> None:
    """Write the rails' values, each file as a whole: a reader never sees half a number."""
    above = max(0.0, total - module.idle_w)
    watts = {}
    for label, share in module.rails.items():
        watts[label] = total if share == 1.0 else (module.idle_w + above) * share
    if module.iio:
        folder = root / "sys/devices/i2c/6-0040/iio:device0"
        _replace(
            {folder / f"in_power{n}_input": round(value * 1e3) for n, value in enumerate(watts.values())}
        )
        return
    if "VIN" in watts:
        folder = root / "sys/class/hwmon/hwmon3"
        _replace({folder / "power1_input": round(watts.pop("VIN") * 1e6)})
    folder = root / "sys/class/hwmon/hwmon1"
    for number, value in enumerate(watts.values(), start=1):
        _replace(
            {
                folder / f"in{number}_input": round(_VOLTS * 1e3),
                folder / f"curr{number}_input": round(value / _VOLTS * 1e3),
            }
        )


def _replace(files: Mapping[Path, int]) -> None:
    for path, value in files.items():
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(f"{value}\n")
        fresh.replace(path)


def members(root: Path) -> list[int]:
    """Processes whose environment names this tree."""
    wanted = f"GREENCC_AGENT_ROOT={root}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def _busy_seconds(pid: int) -> float:
    """Time that all threads of a process have run."""
    total = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(file.read_text().split()[0])
    return total * 1e-9


def _play(root: Path) -> None:
    """Follow the engines of a tree until standard input ends."""
    text = (root / "sys/firmware/devicetree/base/model").read_text().rstrip("\0")
    module = next(kind for kind in MODULES.values() if kind.model == text)
    before: dict[int, float] = {}
    looked, then = 0.0, time.monotonic()
    while not select.select([sys.stdin], [], [], _PERIOD_S)[0]:
        now = time.monotonic()
        if now - looked > _LOOK_S:
            looked = now
            workers = [pid for pid in members(root) if _works(pid)]
            before = {pid: before.get(pid, _busy_seconds(pid)) for pid in workers}
        after = {pid: _busy_seconds(pid) for pid in before}
        cores = sum(max(0.0, after[pid] - before[pid]) for pid in before) / (now - then)
        before, then = after, now
        _show(root, module, min(module.idle_w + module.core_w * cores, _cap(root, module)))


def _works(pid: int) -> bool:
    """Whether a process builds or runs engines, rather than serving or watching."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"trtexec" in command or b"agent.backends" in command or b"runner" in command
    return False


def _cap(root: Path, module: Module) -> float:
    """Watts of the power mode, by its name."""
    number = int((root / "var/lib/nvpmodel/status").read_text().removeprefix("pmode:"))
    match = re.search(r"(\d+)W", dict(module.modes)[number])
    return float(match[1]) if match else float("inf")


if __name__ == "__main__":
    _play(Path(sys.argv[1]))
