#!/usr/bin/env python3
"""Writes the golden transitions beside this file from the original environments.

    python3 -m venv venv && venv/bin/pip install gymnasium numpy && venv/bin/python envs/golden/generate.py

One line is one transition: steps taken before, state, action, next state, observation, reward, terminated, truncated.
The tests read these files; they need no Python.
"""
import math
import os
import sys

import gymnasium
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
PI = math.pi
THETA = 12 * 2 * PI / 360
SEED = 20240607


def near(x, by=1e-9):
    return [x - by, x, x + by]


def cartpole(rng):
    for _ in range(120):
        yield 0, rng.uniform(-1, 1, 4) * [2.4, 3, THETA, 3], int(rng.integers(2))
    for a in (0, 1):
        for x in near(2.4) + near(-2.4):
            yield 3, [x, 0, 0.01, 0], a
        for th in near(THETA) + near(-THETA) + near(0.21) + near(-0.21):
            yield 3, [0, 0, th, 0], a
        for x in near(2.4 - 0.02) + near(-2.4 + 0.02):
            yield 3, [x, math.copysign(1.0, x), 0, 0], a
        for th in near(THETA - 0.02) + near(-THETA + 0.02):
            yield 499, [0, 0, th, math.copysign(1.0, th)], a
        for th in (0.3, -0.5, 1.0, PI / 2, PI, -4.0, 30.0):  # further than an episode ever leans
            yield 7, [0.1, 0.2, th, -0.3], a
        for th in (0.215, -0.215, 0.25):  # and back into range
            yield 7, [0.1, 0.2, th, -math.copysign(4.0, th)], a
        for steps in (0, 1, 498, 499):
            yield steps, [0.01, -0.02, 0.03, 0.04], a


def mountain_car(rng):
    for _ in range(120):
        yield 0, [rng.uniform(-1.2, 0.6), rng.uniform(-0.07, 0.07)], int(rng.integers(3))
    for a in range(3):
        for p, v in ((-1.2, -0.07), (-1.2, 0.0), (-1.199, -0.01), (-1.2, 0.001), (0.6, 0.07), (0.59, 0.07), (-1.15, -0.07)):
            yield 5, [p, v], a
        for p in near(0.5) + near(0.43) + near(0.499):
            for v in (0.07, -0.07, 0.0, 1e-4):
                yield 5, [p, v], a
        for v in near(0.07) + near(-0.07):
            yield 5, [-0.5, v], a
        for p, v in ((7.0, 0.0), (-40.0, 0.5)):
            yield 5, [p, v], a
        for steps in (0, 198, 199):
            yield steps, [-0.5, 0.0], a
            yield steps, [0.45, 0.07], a


def mountain_car_continuous(rng):
    pushes = [0.0, 1.0, -1.0, 0.5, -0.123, 1.0000001, -1.5, 3.0]
    for _ in range(120):
        yield 0, [rng.uniform(-1.2, 0.6), rng.uniform(-0.07, 0.07)], rng.uniform(-1.2, 1.2)
    for a in pushes:
        for p, v in ((-1.2, -0.07), (-1.2, 0.0), (-1.199, -0.01), (-1.2, 0.001), (0.6, 0.07), (0.59, 0.07), (-1.15, -0.07)):
            yield 5, [p, v], a
        for p in (0.38, 0.4, 0.449, 0.45, 0.451):
            for v in (0.07, -0.07, 0.0, 1e-4):
                yield 5, [p, v], a
        for steps in (0, 997, 998):
            yield steps, [-0.5, 0.0], a
            yield steps, [0.42, 0.07], a


def pendulum(rng):
    torques = [0.0, 2.0, -2.0, 0.3, -1.7, 2.0000002, -5.0]
    for _ in range(150):
        yield 0, [rng.uniform(-PI, PI), rng.uniform(-8, 8)], rng.uniform(-2.2, 2.2)
    for _ in range(30):
        yield 100, [rng.uniform(-90, 90), rng.uniform(-8, 8)], rng.uniform(-2.2, 2.2)
    for u in torques:
        for th in near(PI) + near(-PI) + near(3 * PI) + near(-7 * PI) + [0.0, PI / 2, -PI / 4, 1000.25]:
            yield 9, [th, 0.5], u
        for thd in near(8.0) + near(-8.0):
            yield 9, [1.0, thd], u
        for steps in (0, 198, 199):
            yield steps, [1.0, 0.5], u


def acrobot(rng):
    high = np.array([PI, PI, 4 * PI, 9 * PI])
    for _ in range(120):
        yield 0, rng.uniform(-1, 1, 4) * high, int(rng.integers(3))
    for _ in range(40):
        yield 0, rng.uniform(-0.1, 0.1, 4), int(rng.integers(3))
    for a in range(3):
        for th in (PI, -PI, PI - 1e-3, -PI + 1e-3):
            yield 5, [th, 0.5, 1.0, -1.0], a
            yield 5, [0.5, th, -1.0, math.copysign(9.0, th)], a
        for sign in (1, -1):
            yield 5, [0.3, 0.2, sign * 4 * PI, 0], a
            yield 5, [0.3, 0.2, 0, sign * 9 * PI], a
            yield 5, [PI, PI, sign * 4 * PI, sign * 9 * PI], a
        for th in (1.9, 2.0, 2.05, 2.0943951, 2.1, 2.2, 2.5):  # around the line
            yield 5, [th, 0.0, 0.3, 0.0], a
            yield 499, [-th, 0.0, 0.3, 0.0], a
        for steps in (0, 498, 499):
            yield steps, [0.1, -0.05, 0.02, 0.03], a


ENVS = {
    "cartpole": ("CartPole-v1", cartpole),
    "mountain_car": ("MountainCar-v0", mountain_car),
    "mountain_car_continuous": ("MountainCarContinuous-v0", mountain_car_continuous),
    "pendulum": ("Pendulum-v1", pendulum),
    "acrobot": ("Acrobot-v1", acrobot),
}


def walk(env, rng, episodes, steps):
    """States as the original visits them, random actions."""
    for episode in range(episodes):
        env.reset(seed=SEED + episode)
        for step in range(steps):
            action = env.action_space.sample()
            action = int(action) if np.isscalar(action) or action.ndim == 0 else float(action[0])
            yield step, np.array(env.unwrapped.state, dtype=np.float64), action
            terminated = env.step(np.array([action], np.float32) if isinstance(action, float) else action)[2]
            if terminated:
                break


def numbers(values, form="%.17g"):
    return [form % float(v) for v in values]


def transition(env, name, steps, state, action):
    env.reset(seed=1)
    inner = env.unwrapped
    single = name == "mountain_car_continuous"  # keeps its state in single precision
    inner.state = np.array(state, dtype=np.float32 if single else np.float64)
    limit = env
    while not hasattr(limit, "_max_episode_steps"):
        limit = limit.env
    limit._elapsed_steps = steps
    given = np.array([action], np.float32) if isinstance(env.action_space, gymnasium.spaces.Box) else int(action)
    before = np.array(inner.state, dtype=np.float64)
    obs, reward, terminated, truncated, _ = env.step(given)
    shown = "%.9g" % float(given[0]) if isinstance(given, np.ndarray) else str(given)
    return ",".join([str(steps)] + numbers(before) + [shown] + numbers(inner.state) + numbers(obs, "%.9g")
                    + numbers([reward]) + [str(int(terminated)), str(int(truncated))])


def main():
    for name, (env_id, cases) in ENVS.items():
        rng = np.random.default_rng(SEED)
        env = gymnasium.make(env_id, disable_env_checker=True)
        env.action_space.seed(SEED)
        rows = list(cases(rng)) + list(walk(env, rng, 4, 40))
        lines = ["# %s, gymnasium %s: steps,state,action,next state,observation,reward,terminated,truncated"
                 % (env_id, gymnasium.__version__)]
        lines += [transition(env, name, steps, state, action) for steps, state, action in rows]
        with open(os.path.join(HERE, name + ".csv"), "w") as out:
            out.write("\n".join(lines) + "\n")
        ended = [line.split(",")[-2:] for line in lines[1:]]
        print(name, len(rows), "terminated", sum(e[0] == "1" for e in ended), "truncated", sum(e[1] == "1" for e in ended),
              "both", sum(e == ["1", "1"] for e in ended))


if __name__ == "__main__":
    sys.exit(main())
