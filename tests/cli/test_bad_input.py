"""Everything a user can get wrong: a message, a hint, an exit code, and nothing half-written."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from _pytest.mark import ParameterSet
from onnx import ModelProto, external_data_helper

from greencc.core.errors import ExitCode

COMPILE = ("compile", "model.onnx", "-o", "out.greencc", "--effort", "quick")
DATA = ("-c", "calibration.npz", "--eval", "eval.npz")
INT8 = (*COMPILE, *DATA, "--precision", "int8")
Prepare = Callable[[Path], object]
USAGE, LIMIT, BAD = ExitCode.USAGE, ExitCode.LIMIT, ExitCode.BAD_INPUT


def case(
    name: str,
    arguments: tuple[str, ...],
    code: ExitCode,
    message: str,
    hint: str = "",
    prepare: Prepare | None = None,
) -> ParameterSet:
    return pytest.param(arguments, code, message, hint, prepare, id=name)


def write(name: str, content: bytes | str) -> Prepare:
    def prepare(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return prepare


def edit(change: Callable[[ModelProto], None]) -> Prepare:
    """Change model.onnx."""

    def prepare(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return prepare


def truncate(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:5000])


def cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "a"


def unknown_op(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Rleu"


def custom_op(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Magic"
    model.graph.node[1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def opset(version: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def fixed_batch(size: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = size

    return change


def external(location: str, length: int = 64 * 48 * 4) -> Callable[[ModelProto], None]:
    """Move the first weight to a file of that name."""

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        external_data_helper.set_external_data(tensor, location, length=length)
        tensor.ClearField("raw_data")

    return change


def external_short(folder: Path) -> None:
    (folder / "w.bin").write_bytes(b"\0" * 100)
    edit(external("w.bin"))(folder)


def external_link(folder: Path) -> None:
    (folder / "w.bin").symlink_to("/etc/hostname")
    edit(external("w.bin"))(folder)


def pixels(folder: Path) -> np.ndarray:
    with np.load(folder / "calibration.npz") as archive:
        return archive["pixels"]


def calibration(change: Callable[[np.ndarray], np.ndarray], name: str = "pixels") -> Prepare:
    def prepare(folder: Path) -> None:
        np.savez(folder / "calibration.npz", **{name: change(pixels(folder))})

    return prepare


def poisoned(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        x[3, 5] = value
        return x

    return change


def labels(change: Callable[[np.ndarray], np.ndarray]) -> Prepare:
    def prepare(folder: Path) -> None:
        with np.load(folder / "eval.npz") as archive:
            x, y = archive["pixels"], archive["labels"]
        np.savez(folder / "eval.npz", pixels=x, labels=change(y))

    return prepare


def few_evaluation_samples(folder: Path) -> None:
    with np.load(folder / "eval.npz") as archive:
        x, y = archive["pixels"][:60], archive["labels"][:60]
    np.savez(folder / "eval.npz", pixels=x, labels=y)


def objects(folder: Path) -> None:
    rows = np.empty(2, object)
    rows[:] = [pixels(folder), None]
    np.savez(folder / "calibration.npz", pixels=rows)


def pickled(folder: Path) -> None:
    (folder / "calibration.npz").write_bytes(pickle.dumps({"pixels": pixels(folder)}))


def bomb(folder: Path) -> None:
    """320 MiB of zeros in a third of a MB."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1310720, 64), }".ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    chunk = bytes(16 << 20)
    with (
        zipfile.ZipFile(folder / "calibration.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("pixels.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(start)
        for _ in range(20):
            stream.write(chunk)


def images(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    for index in range(2):
        Image.new("L", (8, 8), index).save(folder / "images" / f"{index}.png")


def labels_folder(folder: Path) -> None:
    (folder / "labels.csv").mkdir()


def output_exists(folder: Path) -> None:
    (folder / "out.greencc").mkdir()
    (folder / "out.greencc" / "thesis.txt").write_text("years of work")


METRICS = """
import numpy as np
def fails(outputs, labels, feeds): raise ValueError("on purpose")
def exits(outputs, labels, feeds): raise SystemExit(0)
def shaped(outputs, labels, feeds): return np.zeros(3)
def percent(outputs, labels, feeds): return np.full(len(labels), 100.0)
def broken_generator():
    yield {"pixels": np.zeros((4, 64), np.float32)}
    raise RuntimeError("no more")
def no_generator(): return None
"""
user_code = write("user_code_of_a_test.py", METRICS)
MODULE = "user_code_of_a_test"


def recipe(text: str) -> Prepare:
    return write("recipe.toml", text)


RECIPE = (*COMPILE, *DATA, "--recipe", "recipe.toml")

CASES = (
    # The model.
    case("truncated model", INT8, BAD, "model.onnx is not an ONNX model, or it is truncated", "copy it again",
         truncate),
    case(
        "random bytes", INT8, BAD, "model.onnx is not an ONNX model", "export or copy it again",
        write("model.onnx", np.random.default_rng(0).bytes(4000)),
    ),
    case("empty model", INT8, BAD, "model.onnx is empty", "export or copy", write("model.onnx", b"")),
    case("missing model", ("compile", "none.onnx"), BAD, "none.onnx: No such file", "check the path"),
    case("folder as model", ("compile", "."), BAD, ". is a folder", "path of an .onnx file"),
    case("pickled checkpoint", INT8, BAD, "not an ONNX model but a Python pickle", "greencc reads no pickles",
         write("model.onnx", pickle.dumps({"weights": [1.0]}, protocol=2))),
    case("git lfs pointer", INT8, BAD, "a Git LFS pointer", "git lfs pull",
         write("model.onnx", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")),
    case("cyclic graph", INT8, BAD, "the graph has a cycle: node 'relu'", "acyclic", edit(cycle)),
    case("unknown operator", INT8, BAD, "node 'relu' (Rleu): ai.onnx opset 17 has no such operator",
         "did you mean 'Relu'", edit(unknown_op)),
    case("custom operator", INT8, BAD, "no operator 'com.example:Magic'", "custom-operator library",
         edit(custom_op)),
    case("old opset", INT8, BAD, "uses opset 7", "opset 9 to 23", edit(opset(7))),
    case("future opset", INT8, BAD, "uses opset 99", "export with opset 23 or older", edit(opset(99))),
    case("external data missing", INT8, BAD, "w.bin", "", edit(external("w.bin"))),
    case("external data short", INT8, BAD, "w.bin", "", external_short),
    case("external data outside", INT8, BAD, "../w.bin", "", edit(external("../w.bin"))),
    case("external data absolute", INT8, BAD, "/etc/hostname", "", edit(external("/etc/hostname"))),
    case("external data link", INT8, BAD, "w.bin", "", external_link),
    # Calibration and evaluation data.
    case("missing data", (*COMPILE, "-c", "none.npz"), BAD, "calibration data: none.npz does not exist",
         "give an .npz"),
    case("input missing", INT8, BAD, "array 'pixel' is no input of the model", "'pixels'",
         calibration(lambda x: x, "pixel")),
    case("wrong rank", INT8, BAD, "has shape [200, 8, 8], the model takes [batch, 64]",
         "first axis is the samples",
         calibration(lambda x: x.reshape(-1, 8, 8))),
    case("wrong size", INT8, BAD, "has shape [200, 63], the model takes [batch, 64]", "",
         calibration(lambda x: x[:, :63])),
    case("text as data", INT8, BAD, "calibration.npz[pixels.npy] holds text", "plain numbers",
         calibration(lambda x: x.astype("U4"))),
    case("complex data", INT8, BAD, "holds complex numbers", "plain numbers",
         calibration(lambda x: x.astype(complex))),
    case("nan", INT8, BAD, "'pixels' holds nan in sample 3", "must be finite", calibration(poisoned(np.nan))),
    case("inf", INT8, BAD, "'pixels' holds inf in sample 3", "must be finite", calibration(poisoned(np.inf))),
    case("no samples", INT8, BAD, "calibration.npz has 0 samples", "", calibration(lambda x: x[:0])),
    case("one sample for everything", (*COMPILE, "-c", "calibration.npz"), BAD,
         "has one sample, which cannot both calibrate and verify", "--eval", calibration(lambda x: x[:1])),
    case("fixed batch too large", INT8, BAD, "takes batches of 1000 samples, and there are fewer",
         "give more samples", edit(fixed_batch(1000))),
    case("zip bomb", INT8, BAD, "refused as a zip bomb", "uncompressed", bomb),
    case("pickled npz", INT8, BAD, "calibration.npz is truncated or corrupt", "write it again", pickled),
    case("object array", INT8, BAD, "holds Python objects", "padding", objects),
    case("labels of another length", INT8, BAD, "'labels' has 696 samples, 'pixels' has 697", "",
         labels(lambda y: y[:-1])),
    case("labels out of range", INT8, BAD, "is out of range: output 'logits' has 10 classes", "count from 0",
         labels(lambda y: y + 100)),
    case("labels as text", INT8, BAD, "eval.npz[labels.npy] holds text", "",
         labels(lambda y: y.astype("U2"))),
    case("label file missing", (*INT8, "--labels", "none.csv"), BAD, "cannot read none.csv: No such file"),
    case("label file is a folder", (*INT8, "--labels", "labels.csv"), BAD, "labels.csv: Is a directory", "",
         labels_folder),
    case("label file is binary", (*INT8, "--labels", "labels.csv"), BAD, "labels.csv is not a text table",
         "UTF-8",
         write("labels.csv", b"\xfe\xff\x00\x01" * 9)),
    case("label file too short", (*INT8, "--labels", "labels.csv"), BAD,
         "eval.npz has 697 samples, but there are 3 labels", "one label for each sample",
         write("labels.csv", "1\n2\n3\n")),
    case("evaluation on calibration data", (*COMPILE, "-c", "calibration.npz", "--eval", "calibration.npz"),
         BAD,
         "every evaluation sample of calibration.npz is also a calibration sample", "leave --eval out"),
    case("images without preprocessing", (*COMPILE, "-c", "images"), BAD,
         "images holds images, and nothing says how to preprocess them", "preprocess.toml", images),
    case("preprocessing without images", (*INT8, "--preprocess", "p.toml"), USAGE,
         "--preprocess p.toml was given without a folder of images"),
    # The user's own code.
    case("metric module missing", (*INT8, "--metric", "no_such_module:f"), USAGE,
         "no module 'no_such_module'", "looked on"),
    case("metric missing", (*INT8, "--metric", f"{MODULE}:fail"), USAGE, "no function 'fail'",
         "did you mean 'fails'", user_code),
    case("unknown metric", (*INT8, "--metric", "top2"), USAGE, "unknown metric 'top2'",
         "did you mean 'top1'"),
    case("metric raises", (*INT8, "--metric", f"{MODULE}:fails"), BAD,
         f"{MODULE}.py:3: ValueError: on purpose", "", user_code),
    case("metric exits", (*INT8, "--metric", f"{MODULE}:exits"), BAD, f"{MODULE}.py:4: SystemExit", "",
         user_code),
    case("metric shape", (*INT8, "--metric", f"{MODULE}:shaped"), BAD, "returned shape [3] for",
         "one score per sample", user_code),
    case("metric range", (*INT8, "--metric", f"{MODULE}:percent"), BAD, "returned 100 to 100",
         "lie in [0, 1]", user_code),
    case("generator raises", (*COMPILE, "-c", f"{MODULE}:broken_generator"), BAD,
         f"{MODULE}.py:9: RuntimeError: no more", "", user_code),
    case("no generator", (*COMPILE, "-c", f"{MODULE}:no_generator"), BAD,
         "returned NoneType, not an iterable", "yield", user_code),
    case("generator missing", (*COMPILE, "-c", f"{MODULE}:nothing"), USAGE,
         f"no function 'nothing' in {MODULE}", "known:", user_code),
    # Output.
    case("output exists", INT8, BAD, "out.greencc already exists", "--force", output_exists),
    case("force on something else", (*INT8, "--force"), BAD, "out.greencc exists and is not a bundle",
         "another name", output_exists),
    case("file as output folder", ("compile", "model.onnx", "-o", "eval.npz/out.greencc"), BAD,
         "cannot write eval.npz/out.greencc", "a file stands where a folder is needed"),
    case("nothing left in new folders", (*COMPILE[:2], "-o", "a/b/out.greencc", "-c", "calibration.npz"), BAD,
         "has 0 samples", "", calibration(lambda x: x[:0])),
    # Options.
    case("unknown command", ("compil",), USAGE, "no command 'compil': did you mean 'compile'?",
         "greencc --help"),
    case("no model", ("compile",), USAGE, "Missing argument 'MODEL'", "greencc compile --help"),
    case("unknown option", (*INT8, "--precison", "int8"), USAGE, "No such option", "greencc compile --help"),
    case("unknown target", (*INT8, "-t", "cup"), USAGE, "unknown target 'cup'", "did you mean 'cpu'"),
    case("unknown target option", (*INT8, "-t", "cpu:thread=1"), USAGE, "has no option 'thread'",
         "did you mean 'threads'"),
    case("JetPack unknown", (*INT8, "-t", "jetson:jetpack=3"), USAGE, "JetPack 3 is not known for the Jetson Orin Nano",
         "known: 5.1"),
    case("DLA where none is", (*INT8, "-t", "jetson:dla=true"), USAGE, "builds for no DLA of the Jetson Orin Nano",
         "jetson-agx-orin:jetpack=7.2.2,dla=true"),
    case("sparse kernels where none are", (*INT8, "-t", "jetson-nano:sparse=true"), USAGE, "has no sparse kernels",
         "Ampere"),
    case("TensorRT unknown", (*INT8, "-t", "tensorrt:6"), USAGE, "TensorRT 6.0 is not known", "from 8.2"),
    case("bad target option", (*INT8, "-t", "cpu:threads=many"), USAGE, "cpu:threads is 'many'",
         "expected int"),
    case("negative threads", (*INT8, "-t", "cpu:threads=-1"), USAGE, "cpu:threads is -1", "expected 0"),
    case("max drop 0", (*INT8, "--max-drop", "0"), USAGE, "max_drop is 0", "between 0 and 1"),
    case("max drop 150%", (*INT8, "--max-drop", "150%"), USAGE, "max_drop is 1.5", "between 0 and 1"),
    case("max drop nan", (*INT8, "--max-drop", "nan"), USAGE, "max_drop is nan", "between 0 and 1"),
    case("max drop text", (*INT8, "--max-drop", "abc"), USAGE, "'abc' is not a share (write 1% or 0.01)",
         "--help"),
    case("max drop 1", (*INT8, "--max-drop", "1"), USAGE, "'1' is ambiguous (write 1%", "--help"),
    case("confidence 100%", (*INT8, "--confidence", "100%"), USAGE, "confidence is 1",
         "between 50% and 100%"),
    case("samples 0", (*INT8, "--samples", "0"), USAGE, "samples is 0", "at least one"),
    case("samples text", (*INT8, "--samples", "many"), USAGE, "'many' is not a valid integer", "--help"),
    case("unknown precision", (*COMPILE, "--precision", "int9"), USAGE, "'int9' is not one of", "--help"),
    case("int8 without data", (*COMPILE, "--precision", "int8"), USAGE, "needs calibration data",
         "--calibration"),
    case("int8 without calibration", (*COMPILE, "--precision", "int8", "--eval", "eval.npz"), USAGE,
         "needs calibration data", "--calibration"),
    case("labels without data", (*COMPILE, "--labels", "labels.csv"), USAGE, "labels were given without data",
         "--eval"),
    case("recipe and precision", (*RECIPE, "--precision", "int8"), USAGE, "contradict each other",
         "the recipe decides"),
    case("uncertifiable", (*INT8, "--require-certified"), LIMIT, "could not be certified",
         "more evaluation samples",
         few_evaluation_samples),
    case("never certified on synthetic data",
         (*COMPILE, "-c", "synthetic", "--precision", "int8", "--require-certified"),
         LIMIT, "the ranges come from synthetic data", "more evaluation samples"),
    # Recipes.
    case("recipe missing", RECIPE, BAD, "cannot read the recipe recipe.toml: No such file", "check the path"),
    case("recipe binary", RECIPE, BAD, "recipe.toml is not a text file in UTF-8", "",
         write("recipe.toml", b"\xff\xfe\x00")),
    case("recipe malformed", RECIPE, BAD, "recipe.toml is not valid TOML", "", recipe("[[pass")),
    case("recipe without tables", RECIPE, USAGE, "unexpected key 'pass'", "[[pass]]", recipe("pass = [1]")),
    case("recipe of another kind", RECIPE, USAGE, "unexpected key 'passes'", "[[pass]]",
         recipe("passes = 1")),
    case("recipe schema", RECIPE, USAGE, "has schema 'greencc.recipe/9'", "reads 'greencc.recipe/1'",
         recipe('schema = "greencc.recipe/9"')),
    case("unknown pass", RECIPE, USAGE, "unknown pass 'fold-batchnorm'", "did you mean 'fold-batch-norm'",
         recipe('[[pass]]\nname = "fold-batchnorm"')),
    case("unknown pass option", RECIPE, USAGE, "pass 'quantize-int8' has no option 'methid'",
         "did you mean 'method'",
         recipe('[[pass]]\nname = "quantize-int8"\nmethid = "minmax"')),
    case("pass option type", RECIPE, USAGE, "quantize-int8.percentile is 'high'", "expected float",
         recipe('[[pass]]\nname = "quantize-int8"\npercentile = "high"')),
    case("pass option value", RECIPE, USAGE, "percentile is 400", "(50, 100]",
         recipe('[[pass]]\nname = "quantize-int8"\npercentile = 400.0')),
    case("pass option choice", RECIPE, USAGE, "quantize-int8.method is 'minimax'", "did you mean 'minmax'",
         recipe('[[pass]]\nname = "quantize-int8"\nmethod = "minimax"')),
    case("int8 recipe without data", (*COMPILE, "--recipe", "recipe.toml"), BAD, "needs calibration data",
         "--calibration",
         recipe('[[pass]]\nname = "quantize-int8"')),
    # Other commands.
    case("unknown pass to show", ("passes", "fold-batchnorm"), USAGE, "unknown pass",
         "did you mean 'fold-batch-norm'"),
    case("inspect nothing", ("inspect", "none.onnx"), BAD, "none.onnx: No such file", "check the path"),
    case("measure nothing", ("measure", "none.onnx"), BAD, "none.onnx does not exist",
         "an ONNX model or a bundle"),
    case("rate", ("measure", "model.onnx", "--rate", "fast"), USAGE, "'fast' is not a rate of requests",
         "--help"),
    case("rate 0", ("measure", "model.onnx", "--rate", "0/s"), USAGE, "'0/s' is not a rate", "--help"),
    case("rate by the day", ("measure", "model.onnx", "--rate", "3/d"), USAGE, "write 30/s or 1800/min"),
    case("random arrivals without a rate", ("measure", "model.onnx", "--poisson"), USAGE,
         "random arrivals take a rate", "--rate 30/s"),
    case("until 0", ("measure", "model.onnx", "--until", "0%"), USAGE, "half-width of 0 cannot", "--until 2%"),
    case("until nan", ("measure", "model.onnx", "--until", "nan"), USAGE, "half-width of nan", "--until 2%"),
    case("limit 0", ("measure", "model.onnx", "--limit", "0s"), USAGE, "the time limit is 0 s", "--limit 10m"),
    case("limit too short", ("measure", "model.onnx", "--limit", "1m"), USAGE,
         "two rounds of the default protocol take 140 s, more than the limit of 60 s", "--protocol quick"),
    case("unknown protocol", ("measure", "model.onnx", "--protocol", "slow"), USAGE, "'slow' is not one of"),
    case("plot without a folder", ("measure", "model.onnx", "--plot"), USAGE, "--plot needs a folder", "--save"),
    case("force without a folder", ("measure", "model.onnx", "--force"), USAGE, "--force needs", "--save"),
    case("save over a file", ("measure", "model.onnx", "--save", "eval.npz"), BAD, "eval.npz exists already",
         "--force"),
    case("verify nothing", ("verify", "none.greencc"), BAD, "none.greencc is not a bundle folder",
         "NAME.greencc"),
    case("verify a file", ("verify", "model.onnx"), BAD, "is a file, not a bundle", "give the folder"),
    case("verify a folder", ("verify", "."), BAD, "has no manifest.json", "greencc compile"),
)  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message", "hint", "prepare"), CASES)
def test_bad_input(arguments, code, message, hint, prepare, digits, refused):
    # Each test has a user module of its own.
    sys.modules.pop(MODULE, None)
    if prepare is not None:
        prepare(digits)
    refused(arguments, code, message, hint)


def test_tensorrt_without_a_gpu(no_gpu, refused):
    refused((*INT8, "-t", "tensorrt"), ExitCode.UNAVAILABLE, "there is no NVIDIA GPU here", "greencc doctor")
