"""Train the shipped example: a wide ResNet for Fashion-MNIST, and write the files `make demo` uses.

    apt-get install dataset-fashion-mnist        # or put the four idx .gz files in a folder
    pip install torch onnx onnxscript numpy
    python examples/fashion_mnist/train.py --data /usr/share/datasets/fashion-mnist

The last 5,000 training images are held out of training: the first 1,024 of them become `calibration.npz`.
`eval.npz` holds the first 6,000 images of the official test set with their labels.
Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) is under the MIT licence; so is everything written here.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530
CLASSES = 10
HELD_OUT = 5_000
CALIBRATION_IMAGES = 1_024
EVAL_IMAGES = 6_000


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection (He et al., 2016, figure 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A three-stage ResNet for 28x28 grey images: 1 x 28 x 28 -> 10 logits."""

    def __init__(self, width: int, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        channels_in = width
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels_in, channels, stride))
                channels_in = channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels_in, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def read_idx(path: Path) -> np.ndarray:
    """Read one gzip-compressed IDX file of unsigned bytes (the MNIST format)."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def normalise(images: np.ndarray) -> np.ndarray:
    return ((images.astype(np.float32) / 255.0 - MEAN) / STD)[:, None]


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Random horizontal flip and a a shift of up to two pixels (one shift a batch)."""
    flip = torch.from_numpy(rng.random(len(x)) < 0.5)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    dy, dx = (int(v) for v in rng.integers(-2, 3, 2))
    return torch.roll(x, (dy, dx), (2, 3))


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        hits = sum(
            int((net(xb.contiguous(memory_format=torch.channels_last)).argmax(1) == yb).sum())
            for xb, yb in zip(x.split(500), y.split(500), strict=True)
        )
    net.train()
    return hits / len(y)


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: float, batch: int, rng: np.random.Generator) -> None:
    """SGD with Nesterov momentum and a one-cycle schedule."""
    total = int(epochs * len(x) / batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.15, total_steps=total, pct_start=0.25)
    order = np.empty(0, np.int64)
    start, running = time.time(), 0.0
    for step in range(total):
        if len(order) < batch:
            order = rng.permutation(len(x))
        index, order = torch.from_numpy(order[:batch].copy()), order[batch:]
        xb = augment(x[index], rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(net(xb).float(), y[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if step % 20 == 0:
            print(f"step {step}/{total}  loss {running:.3f}  {time.time() - start:.0f} s", flush=True)


def export(net: nn.Module, path: Path) -> None:
    net.eval()
    torch.onnx.export(
        net.to(memory_format=torch.contiguous_format),
        (torch.zeros(2, 1, 28, 28),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        external_data=False,
        dynamo=True,
    )
    strip_metadata(path)


def strip_metadata(path: Path) -> None:
    """Remove the exporter's stack traces: they hold this machine's paths and weigh more than the graph."""
    model = onnx.load(path)
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    images = normalise(read_idx(args.data / "train-images-idx3-ubyte.gz"))
    labels = read_idx(args.data / "train-labels-idx1-ubyte.gz").astype(np.int64)
    test = normalise(read_idx(args.data / "t10k-images-idx3-ubyte.gz"))
    test_labels = read_idx(args.data / "t10k-labels-idx1-ubyte.gz").astype(np.int64)

    net = ResNet(args.width, (2, 2, 1)).to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(images[:-HELD_OUT]), torch.from_numpy(labels[:-HELD_OUT])
    train(net, x, y, args.epochs, args.batch, rng)
    print("test accuracy", accuracy(net, torch.from_numpy(test), torch.from_numpy(test_labels)))

    args.out.mkdir(parents=True, exist_ok=True)
    export(net, args.out / "model.onnx")
    held_out = images[-HELD_OUT:]
    np.savez_compressed(args.out / "calibration.npz", image=held_out[:CALIBRATION_IMAGES])
    np.savez_compressed(args.out / "eval.npz", image=test[:EVAL_IMAGES], labels=test_labels[:EVAL_IMAGES])


if __name__ == "__main__":
    main()
