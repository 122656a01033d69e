"""Checkpoints: restored bit for bit, complete or not there."""

import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpjax.data.text import Text
from vpjax.data.tokenizer import train_tokenizer
from vpjax.training import checkpoint, sums
from vpjax.types import UserError

ROOT = Path(__file__).parents[2]
CONFIG = {"seed": 0, "optim": {"lr": 1e-3, "freeze": ()}}


def state(step: int, size: int = 1000):
    """A pytree like a run's state, of the types that a run has; everything in it depends on ``step``."""
    rng = np.random.default_rng(step)
    return {
        "step": jnp.int32(step),
        "params": {"decoder.layers.q.kernel": jnp.asarray(rng.normal(size=size), jnp.float32)},
        "frozen": {"vision.patch_embed.kernel": jnp.asarray(rng.normal(size=size), jnp.bfloat16)},
    }


@pytest.fixture
def open_manager(tmp_path):
    managers = []

    def open_manager(keep=2):
        managers.append(checkpoint.Manager(tmp_path, keep=keep))
        return managers[-1]

    yield open_manager
    for manager in managers:
        manager.close()


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_restore_is_the_identity(open_manager):
    manager = open_manager()
    manager.save(3, state(3), CONFIG)
    manager.wait()
    assert open_manager().steps() == [3]
    restored = open_manager().restore(3, abstract(state(0)))
    chex.assert_trees_all_equal(restored, state(3))
    chex.assert_trees_all_equal_dtypes(restored, state(3))


def test_a_saved_state_may_be_donated_at_once(open_manager):
    manager = open_manager()
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    live = state(1, size=1_000_000)
    manager.save(1, live, CONFIG)
    for _ in range(5):
        live = overwrite(live)
    manager.wait()
    chex.assert_trees_all_equal(manager.restore(1, abstract(live)), state(1, size=1_000_000))


def test_the_newest_are_kept(open_manager, tmp_path):
    manager = open_manager(keep=2)
    for step in (1, 2, 3):
        manager.save(step, state(step), CONFIG)
    manager.wait()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}


def test_restore_onto_another_mesh(open_manager):
    manager = open_manager()
    manager.save(1, state(1), CONFIG)
    manager.wait()
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if x.ndim else whole), state(0)
    )
    restored = manager.restore(1, like)
    chex.assert_trees_all_equal(restored, state(1))
    assert restored["params"]["decoder.layers.q.kernel"].sharding == split


def test_an_unfinished_checkpoint_does_not_count(open_manager, tmp_path):
    manager = open_manager()
    manager.save(1, state(1), CONFIG)
    manager.wait()
    # What a process leaves that is killed while it writes step 2: the temporary name, part of the files.
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", left)
    shutil.rmtree(left / "state" / "d")
    again = open_manager()
    assert again.steps() == [1]
    again.save(2, state(2), CONFIG)
    again.wait()
    assert not left.exists()
    chex.assert_trees_all_equal(again.restore(2, abstract(state(0))), state(2))


def test_a_killed_process_leaves_only_complete_checkpoints(open_manager, tmp_path):
    """Killed at an unknown moment of writing: what is there afterwards restores to exactly what was saved."""
    child = """
        import os
        import sys
        from tests.training.test_checkpoint import CONFIG, checkpoint, state
        manager = checkpoint.Manager(sys.argv[1], keep=9)
        manager.save(1, state(1, 2_000_000), CONFIG)
        manager.wait()
        manager.save(2, state(2, 2_000_000), CONFIG)
        os.kill(os.getpid(), 9)
    """
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(child), str(tmp_path)], cwd=ROOT).returncode
    assert code == -signal.SIGKILL
    manager = open_manager()
    assert manager.steps() in ([1], [1, 2])
    for step in manager.steps():
        chex.assert_trees_all_equal(
            manager.restore(step, abstract(state(0, 2_000_000))), state(step, 2_000_000)
        )


def test_a_full_disk_is_one_line_and_no_checkpoint(open_manager, tmp_path, caplog, capfd):
    """Of the error, and of the log: no thread of orbax or tensorstore adds its traceback."""
    manager = open_manager()
    manager.save(1, state(1), CONFIG)
    manager.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Stands for a disk that fills up: a file larger than this cannot be written.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError) as error:
            manager.save(2, state(2, 1_000_000), CONFIG)
            manager.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        str(error.value) == f"{tmp_path / 'checkpoints'}: a checkpoint could not be written: File too large"
    )
    assert not [record for record in caplog.records if record.exc_info]
    assert "Traceback" not in capfd.readouterr().err
    assert open_manager().steps() == [1]


def test_the_best_is_kept_beside_the_newest(open_manager, tmp_path):
    """Of five checkpoints with the best at step 2, and then at step 5, where it is the newest itself."""
    manager = open_manager(keep=1)
    kept = []
    for step, best in enumerate([None, 2, 2, 2, 5], 1):
        manager.save(step, state(step), CONFIG, best=best)
        manager.wait()
        kept.append(sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()))
    assert kept == [[1], [2], [2, 3], [2, 4], [5]]
    again = open_manager(keep=1)  # a run that goes on knows the best one from its log
    again.save(6, state(6), CONFIG, best=5)
    again.save(7, state(7), CONFIG, best=5)
    again.wait()
    assert again.steps() == [5, 7]


def test_what_is_no_model_is_told_what_to_do(tmp_path):
    adapter, quantised, empty = (tmp_path / name for name in ("adapter", "quantised", "empty"))
    for folder in (adapter, quantised, empty):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}')
    (quantised / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    for path, message in (
        ("Qwen/Qwen2.5-VL-7B-Instruct", "no folder.*hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir"),
        (adapter, f"^{adapter} has an adapter of Qwen/Qwen2.5-VL-7B-Instruct and no model: train on"),
        (quantised, f"^{quantised}/config.json is of quantised weights"),
        ("gs://bucket/run", "^gs://bucket/run: runs and models are folders of this machine: mount"),
        (empty, "config.json"),
    ):
        with pytest.raises(UserError, match=message) as error:
            checkpoint.load_model(path)
        assert "\n" not in str(error.value)


@pytest.mark.slow  # imports transformers for the tokenizer
def test_a_tokenizer_is_that_of_its_model(tmp_path):
    train_tokenizer(["What happens?"], tmp_path, 264)
    tokenizer = Text.load(tmp_path).tokenizer
    ids = tokenizer.get_vocab()
    names = dict(image_token="image_pad", video_token="video_pad")
    names |= dict(vision_start="vision_start", vision_end="vision_end")
    fields = {field: ids[f"<|{name}|>"] for field, name in names.items()}

    def text(vocab, rate=None, **changes):
        decoder = SimpleNamespace(vocab=vocab)
        config = SimpleNamespace(decoder=decoder, tokens_per_second=rate, **fields | changes)
        return checkpoint.text_of(tmp_path, config)

    size = len(tokenizer)
    assert text(size).video_pad == fields["video_token"] and text(size + 64)  # embeddings are often padded
    for field, name in names.items():
        with pytest.raises(UserError, match=rf"^{tmp_path}: <\|{name}\|> is 0 in config.json, but"):
            text(size, **{field: 0})
    assert text(size, 2.0, vision_start=0)  # which this model does not read
    tokenizer.add_tokens(["<glue>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"ids up to {size}, but vocab_size in config.json is {size}: use"):
        text(size)
    assert text(size + 1)


def two_checkpoints(open_manager, folder):
    """Of steps 1 and 2 of a run, all of whose work is done."""
    (folder / "model").mkdir()
    manager = open_manager()
    for step in (1, 2):
        manager.save(step, state(step), CONFIG)
    manager.wait()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, zero, flip, Path.unlink])
def test_a_damaged_file_of_the_newest_leads_to_the_one_before(open_manager, tmp_path, harm):
    """Whichever file it is: readers take the older checkpoint and say so, or say why they cannot."""
    two_checkpoints(open_manager, tmp_path)
    newest = tmp_path / "checkpoints" / "2"
    files = [path for path in newest.glob("*/**/*") if path.is_file() and path.stat().st_size]
    assert len(files) > 8 and {"state", "run"} == {path.relative_to(newest).parts[0] for path in files}
    assert checkpoint.step_of(tmp_path) == checkpoint.step_of(tmp_path, 2) == 2
    for file in files:
        content, said = file.read_bytes(), []
        harm(file)
        assert checkpoint.step_of(tmp_path, say=said.append) == 1
        name = file.relative_to(newest)
        assert len(said) == 1 and f"step 2 is damaged ({name} " in said[0] and "step 1 is taken" in said[0]
        with pytest.raises(UserError, match="step 2 is damaged .*: move it elsewhere"):
            checkpoint.step_of(tmp_path)  # nobody could be told
        with pytest.raises(UserError, match=r"step 2 is damaged .*; whole are those of \[1\]"):
            checkpoint.step_of(tmp_path, 2, said.append)
        file.write_bytes(content)
    assert checkpoint.step_of(tmp_path) == 2
    for harm in (cut, zero):
        harm(newest / sums.SUMS)
        assert checkpoint.step_of(tmp_path, say=lambda line: None) == 1


def test_a_run_sets_damaged_checkpoints_aside_and_writes_them_anew(open_manager, tmp_path):
    two_checkpoints(open_manager, tmp_path)
    assert sums.set_damaged_aside(tmp_path) == []
    for names in (["2.damaged"], ["2.damaged", "2.damaged-2"]):
        zero(tmp_path / "checkpoints/2/state/manifest.ocdbt")
        (line,) = sums.set_damaged_aside(tmp_path)
        assert line.endswith(f"set aside as {names[-1]}: the run goes on after step 1")
        manager = open_manager()
        assert manager.steps() == [1]
        manager.save(2, state(2), CONFIG)
        manager.wait()
        chex.assert_trees_all_equal(manager.restore(2, abstract(state(0))), state(2))
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2", *names}


def test_without_a_whole_checkpoint_nothing_is_changed(open_manager, tmp_path):
    two_checkpoints(open_manager, tmp_path)
    for step in (1, 2):
        zero(tmp_path / f"checkpoints/{step}/state/manifest.ocdbt")
    for use in (sums.set_damaged_aside, checkpoint.step_of):
        with pytest.raises(UserError, match="no checkpoint is whole .step 2: .* step 1: .*: bring back"):
            use(tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_checkpoints_without_sums_are_those_of_an_older_vpjax(open_manager, tmp_path):
    two_checkpoints(open_manager, tmp_path)
    (tmp_path / "checkpoints/2" / sums.SUMS).unlink()
    assert checkpoint.step_of(tmp_path) == 2
