"""The agent: a small program that greencc copies to a device, and that builds, runs, times and meters models there.

It is pure standard library and runs on Python 3.6 (JetPack 4) and later; it never imports the rest of greencc. The host
packs it into one zip file (`greencc.devices.package`), which `python3 FILE serve` runs. Host and agent talk over the
standard streams:

* The agent's first line is ``{"greencc-agent": 1, "python": "3.10.12", "pid": 4711, "home": "/home/u/.cache/..."}``.
  Lines before it (a login banner) are skipped.
* A request is one line of JSON, ``{"id": 7, "op": "probe", "args": {...}, "bytes": N}``, and N bytes after it.
* Its reply likewise, ``{"id": 7, "result": {...}, "bytes": N}`` and N bytes, or
  ``{"id": 7, "error": {"kind": K, "message": M, "hint": H}}``. K is one of ``usage``, ``input``, ``unavailable``,
  ``disk``, ``memory``, ``timeout``, ``crashed``, ``lost``, ``permission``, ``internal``.
* Requests are answered one after another. All are safe to send again after the connection broke.

Operations (arguments -> result; payloads where named):

    probe           {} -> facts of the machine (see `greencc.agent.probe`)
    has             {"sha256": S} -> {"size": bytes that are there, "complete": bool}
    put             {"sha256": S, "total": T, "offset": O} + bytes -> {"size": ..., "complete": ...}
    start           {"job": ID, "spec": {...}} -> {"state": ...}; an ID that is known is not started again; with
                    "forget": [IDs] jobs that are needed no more are removed first
    poll            {"job": ID, "since": N} -> {"state": "running|done|failed|cancelled|lost", "events": [...],
                    "next": M, "result": {...}, "error": {...}}; an event is {"t": seconds, "text": ...} or
                    {"t": ..., "done": 0.4}
    fetch           {"job": ID, "file": NAME, "offset": O, "most": N} -> {"size": ...} + bytes
    cancel          {"job": ID} -> {}
    open            {"job": build ID} -> {"engine": E, "inputs": [...], "outputs": [...]}: a resident engine
    run             {"engine": E, "inputs": [{"name", "dtype", "shape"}...]} + bytes, raw and little-endian, in that
                    order -> {"outputs": [{"name", "dtype", "shape"}...], "ms": ...} + bytes
    close           {"engine": E} -> {}
    power-mode      {"set": NAME} or {"restore": true} -> {"mode": ..., "before": ...}; with "owner": TOKEN of the
                    host's run, which takes over what it has set by a connection that is dead and does not know it
    clean           {"all": bool} -> {"freed": bytes, "kept": bytes of models, engines and caches that are left}
    bye             {} -> {}

All may have "session": TOKEN of the host's run: its connections, of which some may have broken, count as one.

Jobs are processes of their own: they outlive the connection, keep their state in files, and end at their limits of
time (``seconds``, default 3600), memory (``bytes``, of all their processes) and disk. A job that times or meters has
the device for itself; one that finds it in use waits, up to ``wait`` seconds (default 3600), which do not count.
Goodbye removes the jobs that the session had to do with, unless another one has as well, but for engines, which
another host may want tomorrow: they stay until they have not been used for a week, hold more than their quota and were
not used within a day, room is needed, or all is cleaned. What was sent stays as well (so that it is not sent again),
and so do builders' timing caches, for two weeks. Specs:

    {"kind": "build", "backend": "tensorrt|ort|tvm", "files": {NAME: SHA256}, "main": NAME, "options": {...},
     "limits": {"seconds": ..., "bytes": ...}} -> {"log": ..., "seconds": ..., "engine_bytes": ..., "versions": {...}}
    {"kind": "drive", "build": ID, "feeds": SHA256, "inputs": [...], "count": feeds in the file,
     "seconds" | "runs": ..., "rate": ..., "due": [offsets...], "first": ..., "metered": bool, "threads": ...,
     "meter": its name, "processor": "cpu" | "gpu"} -> a `greencc.core.elsewhere.Driven` as JSON (see
        `greencc.agent.drive`); times of runs in the files ``latencies.f64`` and ``services.f64``
    {"kind": "idle", "seconds": ..., "metered": ..., "meter": ..., "processor": ...} -> likewise
    {"kind": "profile", "build": ID, "feeds": ..., "runs": ...} -> {"nodes": [{"name", "op_type", "us"}...]}

After a reboot a running job is ``lost`` (the boot id differs), what was built is still there, and a power mode that was
changed is put back by the next agent that starts, or by the watchdog where the machine stayed up.
"""

VERSION = 1
