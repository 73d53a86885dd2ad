"""What watching a sensor costs: the processor share of the sampling thread, by sensor and rate.

    python -m benchmarks.sampling_cost [--seconds 5]

The sensors read trees of plain files shaped like AGX Orin's two INA3221 (six attributes a sample) and like a RAPL
package. Reading a file of a temporary folder takes the same path through Python as reading sysfs; what the driver and
the bus take on top (an INA3221 on I2C: about half a millisecond a register, most of it waiting) is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from greencc.core.meter import Meter, PowerMeter
from greencc.meters.jetson import JetsonMeter
from greencc.meters.rapl import RaplMeter
from greencc.meters.sampling import Sampler

RAILS = (("VDD_GPU_SOC", 19000, 160), ("VDD_CPU_CV", 19000, 80), ("VIN_SYS_5V0", 4968, 800))


def write(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


@contextlib.contextmanager
def agx_orin(root: Path) -> Iterator[PowerMeter]:
    tree = root / "firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "compatible").write_text("nvidia,p3701-0005\0nvidia,tegra234\0")
    chip: dict[str, object] = {"name": "ina3221", "update_interval": 18}
    for number, (label, millivolts, milliamperes) in enumerate(RAILS, start=1):
        chip |= {
            f"in{number}_label": label,
            f"in{number}_input": millivolts,
            f"curr{number}_input": milliamperes,
        }
    write(root / "class/hwmon/hwmon3", chip)
    yield JetsonMeter(root)


@contextlib.contextmanager
def package(root: Path) -> Iterator[Meter]:
    """A counter that moves, in a thread of its own, so that it is not taken for stuck."""
    folder = root / "class/powercap/intel-rapl:0"
    write(folder, {"name": "package-0", "max_energy_range_uj": 262_143_328_850, "energy_uj": 0})

    end = threading.Event()

    def count() -> None:
        value = 0
        while not end.wait(0.02):
            value += 1000
            # A rename, so that no reader sees a file that is half written.
            write(folder, {"next": value})
            (folder / "next").replace(folder / "energy_uj")

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield RaplMeter(root)
    finally:
        end.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to watch each")
    seconds = parser.parse_args().seconds
    print(
        f"{'sensor':8} {'Hz':>8} {'samples':>8} {'late':>5} {'failed':>6} {'us/sample':>10} {'core share':>11}"
    )
    for make in (agx_orin, package):
        for interval in (None, 0.1, 0.01):
            with tempfile.TemporaryDirectory() as folder, make(Path(folder)) as sensor:
                if (why := sensor.missing()) is not None:
                    raise SystemExit(why)
                sampler = Sampler(sensor, interval_s=interval)
                with sampler:
                    threading.Event().wait(seconds)
                cost = sampler.cost()
                rate = "default" if interval is None else f"{1 / interval:.0f}"
                print(
                    f"{sensor.name:8} {rate:>8} {cost.samples:8} {cost.late:5} {len(sampler.failures()):6} "
                    f"{1e6 * cost.cpu_seconds / max(cost.samples, 1):10.0f} {cost.core_share:11.3%}"
                )


if __name__ == "__main__":
    main()
