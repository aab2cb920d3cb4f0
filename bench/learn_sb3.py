"""CartPole-v1 by Stable-Baselines3's PPO, for learn.sh --peer: until the mean of the last 100 training episodes is 475.

    python bench/learn_sb3.py SEED

Hyper-parameters are rl-baselines3-zoo's tuned ones. Prints: outcome, seconds inside learn(), environment steps.
"""
import sys
import time

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class UntilSolved(BaseCallback):
    solved = False

    def _on_step(self):
        episodes = self.model.ep_info_buffer
        self.solved = len(episodes) == 100 and np.mean([e["r"] for e in episodes]) >= 475
        return not self.solved


def linear(value):
    return lambda left: value * left


def main():
    seed = int(sys.argv[1])
    torch.set_num_threads(1)  # faster than more for matrices this small
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=seed), n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20,
                ent_coef=0.0, learning_rate=linear(1e-3), clip_range=linear(0.2), seed=seed, device="cpu")
    until = UntilSolved()
    begun = time.monotonic()
    model.learn(100000, callback=until)
    print("learned" if until.solved else "done", "%.3f" % (time.monotonic() - begun), model.num_timesteps)


main()
