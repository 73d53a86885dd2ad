"""Make a control policy without reinforcement learning: an analytic controller, distilled into an MLP of 64 x 64.

The controller swings the pendulum of Gymnasium's Pendulum-v1 up by its energy (Astrom and Furuta, Automatica 2000) and
holds it upright by linear feedback. Its states, with noise on what it does so that the policy learns to come back, are
the training data. Writes policy.onnx, train.npz and eval.npz into a folder (default: the current one).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 64


def controller(observation: np.ndarray) -> float:
    """Torque for one observation (cosine, sine and speed of the angle from upright)."""
    cosine, sine, speed = (float(value) for value in observation)
    angle = np.arctan2(sine, cosine)
    energy = speed**2 / 6.0 + 5.0 * cosine
    torque = -(12.0 * angle + 3.0 * speed) if abs(angle) < 0.5 else 2.0 * (5.0 - energy) * (speed or 1.0)
    return float(np.clip(torque, -2.0, 2.0))


def states(episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations and the controller's torques, while noise pushes it off its path."""
    env = gymnasium.make("Pendulum-v1")
    rng = np.random.default_rng(seed)
    seen, torques = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        noise = rng.choice([0.0, 0.5, 2.0])
        for _ in range(200):
            torque = controller(observation)
            seen.append(np.asarray(observation, np.float32))
            torques.append([torque])
            observation, *_ = env.step(np.clip([torque + noise * rng.standard_normal()], -2.0, 2.0))
    env.close()
    return np.array(seen), np.array(torques, np.float32)


def distil(seen: np.ndarray, torques: np.ndarray, epochs: int, seed: int = 0) -> list[np.ndarray]:
    """Weights and biases of the three layers."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, 1),
        torch.nn.Tanh(),
    )
    x, y = torch.from_numpy(seen), torch.from_numpy(torques)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    steps = epochs * (len(x) // 256)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        loss = torch.nn.functional.mse_loss(2.0 * net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return [parameter.detach().numpy() for parameter in net.parameters()]


def to_onnx(weights: list[np.ndarray]) -> onnx.ModelProto:
    """The policy: observation in, torque out."""
    constants = [numpy_helper.from_array(array, f"p{index}") for index, array in enumerate(weights)]
    constants.append(numpy_helper.from_array(np.array(2.0, np.float32), "limit"))
    nodes, value = [], "observation"
    for layer in range(3):
        nodes.append(
            helper.make_node(
                "Gemm",
                [value, f"p{2 * layer}", f"p{2 * layer + 1}"],
                [f"z{layer}"],
                name=f"layer{layer}",
                transB=1,
            )
        )
        value = f"a{layer}"
        activation = "Relu" if layer < 2 else "Tanh"
        nodes.append(helper.make_node(activation, [f"z{layer}"], [value], name=f"activation{layer}"))
    nodes.append(helper.make_node("Mul", [value, "limit"], ["torque"], name="scale"))
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("torque", TensorProto.FLOAT, ["n", 1])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen, torques = states(options.episodes, seed=0)
    onnx.save(to_onnx(distil(seen, torques, options.epochs)), options.folder / "policy.onnx")
    np.savez_compressed(options.folder / "train.npz", observation=seen)
    held_out, _ = states(max(1, options.episodes // 5), seed=100_000)
    np.savez_compressed(options.folder / "eval.npz", observation=held_out)


if __name__ == "__main__":
    main()
