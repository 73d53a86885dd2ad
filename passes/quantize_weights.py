"""Weight-only INT8 and INT4: large constants shrink four- to eightfold and the arithmetic stays in float.

By default weights are INT8 with one scale per output channel (per column of a table), products read them through a
DequantizeLinear, a Gather reads rows of the integer table and only those rows are dequantized, and no data
is needed. With a block size every so many inputs have a scale of their own, which is what makes 4 bits usable; the
forms are in `_weight_only_layout`. Rounding is to nearest (`_block_quantize`) or GPTQ (`_gptq`), which needs
calibration data. One tensor is read, rounded and released at a time, so the peak is the integer model plus the largest
tensor; GPTQ adds the second moments of the inputs, within a budget.

The accuracy level is that of ``MatMulNBits``: 4 rounds the activations of each block to 8 bits too and multiplies
integers, 0 multiplies floats. Measured on AVX512-VNNI for 1024 x 4096, one thread, one row / 64 rows, relative to the
float product: 4 bits in blocks of 32 take 1.1 / 1.05 times as long at level 0 and 0.33 / 0.71 at level 4; 8 bits take
41 / 2.9 times as long at level 0, for want of a kernel, and 0.29 / 0.62 at level 4. Level 4 costs a relative
error of 0.5 %, a tenth of what rounding to 4 bits does. ONNX Runtime itself takes level 4 where it turns a
DequantizeLinear before a MatMul into MatMulNBits.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

import onnx_ir as ir

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.graph import ONNX_DOMAINS
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._block_quantize import BITS, BLOCK_SIZES, BlockWeight, Grid, is_finite, nearest
from greencc.passes._exclude import is_excluded
from greencc.passes._gptq import Solution
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_nodes import quantized_already
from greencc.passes._weight_only_forms import Writer
from greencc.passes._weight_only_gptq import Layer, layer_of, solve_layers
from greencc.passes._weight_only_layout import Layout, Use, WeightForm, layout_of, use_of

_RULE = "quantize-weights"
# Operators with a weight that may be quantized.
_OPS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")
_ACCURACY_LEVELS = (0, 1, 4)


class WeightMethod(Enum):
    """How weights are rounded."""

    NEAREST = "nearest"
    GPTQ = "gptq"


@dataclass(frozen=True)
class _Job:
    """A weight that is going to be replaced."""

    value: ir.Value
    tensor: ir.TensorProtocol
    layout: Layout
    grid: Grid
    uses: list[tuple[ir.Node, Use]]


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store large float32 weights as INT8 or INT4.

    Attributes:
        ops: Operators whose weights are quantized.
        min_elements: Smaller weights stay in float: they would save nothing.
        exclude: Names of nodes whose weights stay in float.
        bits: 8 or 4.
        block_size: Weights along the inputs that share a scale: 16, 32, 64 or 128; 0: all of an output channel.
            Convolutions always have one scale per output channel.
        symmetric: The integers are centred on 0; else blocks also store a zero point.
        method: Rounding to nearest, or GPTQ, which needs calibration data.
        form: `auto`: MatMulNBits and GatherBlockQuantized where the target has them and there is a block size, else
            DequantizeLinear, or Cast and Mul where the runtime folds only those when it loads the model;
            `matmul-nbits`: the same, but products that cannot have it stay float; `dequantize`: standard ONNX only.
        accuracy_level: Of MatMulNBits: 4 multiplies 8-bit activations, 0 and 1 multiply floats.
        search: At 4 bits, look for the range of each block with the least squared error; not for convolutions that are
            rounded to nearest.
        act_order: GPTQ takes the inputs by falling second moment.
        sequential: GPTQ sees the inputs that the layers rounded before give, as in its paper; one run over the data
            per layer input, for no gain on the encoders measured.
    """

    name: ClassVar[str] = "quantize-weights"
    summary: ClassVar[str] = (
        "Store large weights as INT8 or INT4 and compute in float; GPTQ needs calibration data"
    )
    lossy: ClassVar[bool] = True

    ops: tuple[str, ...] = ("Gather", "Gemm", "MatMul")
    min_elements: int = 16384
    exclude: tuple[str, ...] = ()
    bits: int = 8
    block_size: int = 0
    symmetric: bool = True
    method: WeightMethod = WeightMethod.NEAREST
    form: WeightForm = WeightForm.AUTO
    accuracy_level: int = 4
    search: bool = True
    act_order: bool = False
    sequential: bool = False

    def __post_init__(self) -> None:
        for op_type in self.ops:
            if op_type not in _OPS:
                raise UsageError(
                    f"{self.name}: ops has {op_type!r}, which has no weight to quantize",
                    hint=did_you_mean(op_type, _OPS),
                )
        for option, value, allowed in (
            ("bits", self.bits, BITS),
            ("block_size", self.block_size, (0, *BLOCK_SIZES)),
            ("accuracy_level", self.accuracy_level, _ACCURACY_LEVELS),
        ):
            if value not in allowed:
                raise UsageError(
                    f"{self.name}: {option} is {value}", hint=f"expected {', '.join(map(str, allowed))}"
                )
        if self.form is WeightForm.MATMUL_NBITS and not self.block_size:
            raise UsageError(
                f"{self.name}: MatMulNBits has blocks, but block_size is 0", hint="take block_size = 32"
            )

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Quantize the large weights of the main graph in place."""
        outcome = Outcome()
        opset = model.opset_imports.get("", 1)
        if opset < 13:
            outcome.findings.append(
                Finding(
                    "refused",
                    f"opset {opset} has no per-channel DequantizeLinear; run upgrade-opset before {self.name}",
                    rule=_RULE,
                )
            )
            return outcome
        foldable = ctx.capabilities.recomputes_dequantize and self.form is WeightForm.AUTO
        writer = Writer(model, self.accuracy_level, foldable=foldable)
        counts: Counter[tuple[Use, str]] = Counter()
        for job, weight in self._rounded(self._jobs(model, ctx, outcome), model, ctx, outcome):
            release(job.tensor)
            writer.write(job.value, weight, job.layout, job.uses)
            counts.update((use, node.op_type) for node, use in job.uses)
            outcome.changed += 1
        outcome.findings.extend(self._notes(counts, foldable))
        if not outcome.changed and not outcome.findings:
            outcome.findings.append(Finding("refused", self._idle(model), rule=_RULE))
        return outcome

    def _idle(self, model: ir.Model) -> str:
        """Why nothing was done."""
        node = quantized_already(model.graph)
        if node is not None:
            return (
                f"the model is quantized already ({node.op_type} {node.name!r}); start from the float model"
            )
        return (
            f"no {', '.join(self.ops)} has a float32 weight of {self.min_elements} elements or more to store"
        )

    def _jobs(self, model: ir.Model, ctx: Context, outcome: Outcome) -> Iterator[_Job]:
        """Yield what to replace, one by one, and add what stays in float to the findings."""
        graph = model.graph
        order = {node: position for position, node in enumerate(graph)}
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype is not ir.DataType.FLOAT or tensor.size < self.min_elements:
                continue
            uses = sorted(value.uses(), key=lambda use: (order.get(use.node, -1), use.idx))
            readers = [use.node for use in uses]
            # A bias is no weight: it is not worth a finding.
            if not any(use.node.op_type in self.ops and use.idx < 2 for use in uses):
                continue
            blocked = bool(self.block_size)
            layouts = {layout_of(use.node, use.idx, len(tensor.shape), blocked=blocked) for use in uses}
            found = self._refusal(value, readers, layouts, order) or self._job(
                value, tensor, next(iter(layouts)), readers, model, ctx
            )
            if isinstance(found, str):
                outcome.findings.append(
                    Finding("left-in-float", f"weight {value.name!r}: {found}", readers[0].name, _RULE)
                )
            elif ctx.rewrites.allow(_RULE, str(readers[0].name)):
                yield found
            release(tensor)

    def _refusal(
        self,
        value: ir.Value,
        readers: list[ir.Node],
        layouts: set[Layout | None],
        order: dict[ir.Node, int],
    ) -> str | None:
        if value.is_graph_input() or value.is_graph_output():
            return "it is an input or output of the model"
        for node in readers:
            if node not in order:
                return f"{node.op_type} {node.name!r} reads it inside a sub-graph"
            if is_excluded(node, self.exclude):
                return f"{node.op_type} {node.name!r} is excluded by the options"
            if node.op_type not in self.ops or node.domain not in ONNX_DOMAINS:
                return f"{node.op_type} {node.name!r} reads it too, so the float copy would have to stay"
        if None in layouts:
            stacked = self.block_size and any(node.op_type == "MatMul" for node in readers)
            reason = " (stacked weights have no blocks)" if stacked else ""
            return f"a node does not read it as a weight with output channels{reason}"
        if len(layouts) > 1:
            return "the nodes that read it have their output channels on different axes"
        return None

    def _job(
        self,
        value: ir.Value,
        tensor: ir.TensorProtocol,
        layout: Layout | None,
        readers: list[ir.Node],
        model: ir.Model,
        ctx: Context,
    ) -> _Job | str:
        assert layout is not None
        # Rounding to nearest, the clipped weights of a convolution shift its mean: more than the search gains.
        shifts = self.method is WeightMethod.NEAREST and any("Conv" in node.op_type for node in readers)
        search = self.search and self.bits == 4 and not shifts
        grid = Grid(self.bits, self.block_size if layout.blocked else 0, self.symmetric, search)
        uses: list[tuple[ir.Node, Use]] = []
        for node in dict.fromkeys(readers):
            use = use_of(node, layout, grid, self.form, model, ctx.capabilities)
            if isinstance(use, str):
                return use
            uses.append((node, use))
        if not is_finite(tensor.numpy()):
            return "it is not finite"
        # Kernels that read blocks take negative scales; of a DequantizeLinear not every runtime expects them.
        packed = all(use in (Use.PRODUCT, Use.TABLE) for _, use in uses)
        return _Job(value, tensor, layout, replace(grid, negative=packed and grid.search), uses)

    def _rounded(
        self, jobs: Iterator[_Job], model: ir.Model, ctx: Context, outcome: Outcome
    ) -> Iterator[tuple[_Job, BlockWeight]]:
        """Yield every job with its integers; GPTQ goes by layer inputs, the rest one tensor at a time."""
        waiting: list[_Job] = []
        layers: list[Layer] = []
        for job in jobs:
            if self.method is WeightMethod.GPTQ:
                layer = layer_of(job.value, job.uses[0][0])
                if isinstance(layer, Layer):
                    waiting.append(job)
                    layers.append(layer)
                    continue
                outcome.findings.append(_rounded_to_nearest(job, layer))
            yield job, nearest(job.layout.matrix(job.tensor.numpy()), job.grid)
        grids = [job.grid for job in waiting]
        solutions: list[Solution] = []
        for index, solution in solve_layers(
            model, layers, grids, ctx, act_order=self.act_order, sequential=self.sequential
        ):
            job = waiting[index]
            if isinstance(solution, str):
                outcome.findings.append(_rounded_to_nearest(job, solution))
                yield job, nearest(job.layout.matrix(job.tensor.numpy()), job.grid)
                continue
            solutions.append(solution)
            view = layers[index].view
            codes = view.stored(solution.weight.codes.reshape(view.groups, view.outputs, view.inputs))
            yield job, replace(solution.weight, codes=job.layout.matrix(codes))
        ratios = [found.error / found.nearest_error for found in solutions if found.nearest_error > 0]
        if ratios:
            outcome.findings.append(
                Finding(
                    "note",
                    f"GPTQ: the squared output error of {len(solutions)} layers on the calibration data is "
                    f"{statistics.median(ratios):.2f} (median) of what rounding to nearest makes it",
                    rule=_RULE,
                )
            )

    def _notes(self, counts: Counter[tuple[Use, str]], foldable: bool) -> Sequence[Finding]:
        """What the user should know about the forms."""
        notes = []
        products = sum(count for (use, _), count in counts.items() if use is Use.PRODUCT)
        if products and self.accuracy_level == 4:
            notes.append(
                f"{products} MatMulNBits round their activations to 8 bits too (accuracy_level 4): faster than float "
                "products, for a relative error of about 0.5 %"
            )
        stored = sum(
            count
            for (use, op_type), count in counts.items()
            if use is Use.DEQUANTIZED and op_type not in ("Gemm", "MatMul")
        )
        if stored:
            notes.append(
                f"{stored} convolutions or tables only store integers: the runtime dequantizes the whole weight "
                + ("when it loads the model" if foldable else "when it loads the model or in every run")
                + "; the file is smaller, the model is not faster"
            )
        return [Finding("note", note, rule=_RULE) for note in notes]


def _rounded_to_nearest(job: _Job, reason: str) -> Finding:
    return Finding(
        "note",
        f"weight {job.value.name!r} is rounded to nearest, not by GPTQ: {reason}",
        job.uses[0][0].name,
        _RULE,
    )
