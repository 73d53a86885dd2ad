"""An engine on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from greencc.core.batching import plan_chunks, run_chunks
from greencc.core.checked_engine import CheckedEngine
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.elsewhere import Driven, Stretch
from greencc.core.engine import Engine
from greencc.devices.client import OpenedEngine
from greencc.devices.site import Built, DeviceSite
from greencc.devices.tensors import as_arrays, as_bytes, specs_of


class DeviceEngine(CheckedEngine):
    """`greencc.core.elsewhere.DistantEngine` of a build on a device.

    Args:
        site: The device.
        built: What was built there.
        here: Opens the same artifact on this computer, in the reference arithmetic: it computes outputs where the
            device takes seconds for a run (`Built.resident`). Times are the device's in any case.
    """

    def __init__(self, site: DeviceSite, built: Built, here: Callable[[], Engine]) -> None:
        super().__init__(site.name, specs_of(built.inputs), specs_of(built.outputs))
        self._site, self.built, self._open_here = site, built, here
        self._opened: OpenedEngine | None = None
        self._here: Engine | None = None

    @property
    def site(self) -> DeviceSite:
        """As `DistantEngine.site`."""
        return self._site

    @property
    def notes(self) -> tuple[str, ...]:
        """As `DistantEngine.notes`."""
        if self.built.resident:
            return ()
        return (
            f"{self._site.name} has trtexec alone: every block, and every round of the latency, runs one of the inputs "
            "over and over, and another block another one",
        )

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As `Engine.run`; on the device where its engine is resident."""
        if self.built.resident:
            return self.run_there(feeds, outputs)
        if self._here is None:
            self._here = self._open_here()
        return self._here.run(feeds, outputs)

    def run_there(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run on the device, however long that takes.

        Raises:
            InputError: It refuses an input, or has no such output.
            UnavailableError: The device is not to be reached any more, or the engine died.
        """
        return super().run(feeds, outputs)

    def drive(self, feeds: Sequence[Feeds], stretch: Stretch) -> Driven:
        """As `DistantEngine.drive`."""
        return self._site.drive(self.built, feeds, stretch)

    def close(self) -> None:
        """Let it go here and there."""
        if self._here is not None:
            self._here.close()
            self._here = None
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._site.client.close_engine(opened)

    def _run(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        # An engine may have been built for a few samples at a time, though the model takes any number.
        plan = plan_chunks(feeds, [self._limited(spec, len(feeds[spec.name])) for spec in self.inputs])
        if plan is None:
            return self._run_once(feeds, outputs)
        batched = dict.fromkeys(outputs, True)
        return run_chunks(plan, feeds, lambda chunk: self._run_once(chunk, outputs), batched)

    def _limited(self, spec: TensorSpec, count: int) -> TensorSpec:
        """An input with as many samples as the engine takes at once, where it is given more."""
        most = self.built.most
        if most is None or spec.batch is not None or count <= most or not spec.shape:
            return spec
        return replace(spec, shape=(most, *spec.shape[1:]))

    def _run_once(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        client = self._site.client
        given = as_bytes(feeds, self.built.inputs, self._site.name)
        if self._opened is None:
            self._opened = client.open_engine(self.built.job)
        found, _ = client.run_engine(self._opened, given)
        arrays = as_arrays(found)
        return {name: arrays[name] for name in outputs}
