"""The evaluator: mean return of a policy on Gymnasium's Pendulum-v1, over episodes that are the same for everyone."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

EPISODES = 20


def episode_return(policy: Any, episodes: int = EPISODES, seed: int = 1000) -> float:
    """Mean return of `policy`, which maps a batch of observations to a batch of torques."""
    env = gymnasium.make("Pendulum-v1")
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        done = False
        while not done:
            torque = policy(np.asarray(observation, np.float32)[None])[0]
            observation, reward, terminated, truncated, _ = env.step(np.clip(torque, -2.0, 2.0))
            total += float(reward)
            done = terminated or truncated
    env.close()
    return total / episodes
