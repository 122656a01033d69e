"""One of two processes of tests/training/test_host_rewards.py, with two devices: it scores its own rows."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.models.generate import Completions
from vpjax.models.sharding import batch_sharding, global_rows, make_mesh
from vpjax.training.judged import host_rewards_of
from vpjax.types import Prompts

ROWS = 8


def main(address: str, process: int) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=1))
    own = np.arange(ROWS).reshape(2, -1)[process]
    tokens = np.broadcast_to(own[:, None, None, None], (len(own), 2, 3, 5))
    completions = Completions(tokens, tokens >= 0, np.float32(tokens))
    clip, completions = global_rows((own, completions), mesh)
    # As a rollout leaves them, from a program of its own.
    completions = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=batch_sharding(mesh))(
        completions
    )
    seen = []

    def score(numbers: np.ndarray, completions: Completions) -> np.ndarray:
        seen.append(numbers.tolist())
        assert np.array_equal(completions.tokens[:, 0, 0, 0], numbers) and completions.tokens.shape[0] == 4
        return 10.0 * numbers[:, None, None] + np.arange(6, dtype=np.float32).reshape(1, 2, 3)

    prompts = Prompts(*[None] * 6, clip=clip)
    rewards = host_rewards_of({"a": score, "b": score}, prompts, completions, mesh)
    assert seen == [own.tolist()] * 2
    whole = 10.0 * np.arange(ROWS)[:, None, None] + np.arange(6).reshape(1, 2, 3)
    close = jax.jit(lambda x: jnp.array([jnp.abs(x[name] - whole).max() for name in ("a", "b")]))
    print("largest difference", float(close(rewards).max()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
