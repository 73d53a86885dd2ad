"""An engine on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.elsewhere import Driven, Stretch
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.devices.client import OpenedEngine
from greencc.devices.site import Built, DeviceSite
from greencc.devices.tensors import as_arrays, as_bytes, specs_of


class DeviceEngine:
    """`greencc.core.elsewhere.DistantEngine` of a build on a device.

    Args:
        site: The device.
        built: What was built there.
        here: Opens the same artifact on this computer, in the reference arithmetic: it computes outputs where the
            device takes seconds for a run (`Built.resident`). Times are the device's in any case.
    """

    def __init__(self, site: DeviceSite, built: Built, here: Callable[[], Engine]) -> None:
        self._site, self.built, self._open_here = site, built, here
        self._opened: OpenedEngine | None = None
        self._here: Engine | None = None
        self._inputs, self._outputs = specs_of(built.inputs), specs_of(built.outputs)

    @property
    def site(self) -> DeviceSite:
        """As `DistantEngine.site`."""
        return self._site

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """As `Engine.inputs`."""
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """As `Engine.outputs`."""
        return self._outputs

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As `Engine.run`; on the device where its engine is resident."""
        if self.built.resident:
            return self.run_there(feeds, outputs)
        if self._here is None:
            self._here = self._open_here()
        return self._here.run(feeds, outputs)

    def run_there(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once on the device, however long that takes.

        Raises:
            InputError: It refuses an input, or has no such output.
            UnavailableError: The device is not to be reached any more, or the engine died.
        """
        client, name = self._site.client, self._site.name
        given = as_bytes(feeds, self.built.inputs, name)
        if self._opened is None:
            self._opened = client.open_engine(self.built.job)
        found, _ = client.run_engine(self._opened, given)
        arrays = as_arrays(found)
        wanted = list(arrays) if outputs is None else list(outputs)
        if missing := [each for each in wanted if each not in arrays]:
            raise InputError(f"{name}: there is no output {missing[0]!r}")
        return {each: arrays[each] for each in wanted}

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
