"""Where compiled programs are kept."""

from types import SimpleNamespace

from vpjax import programs


def test_the_environment_decides_before_the_run(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr(programs.jax, "config", SimpleNamespace(update=settings.__setitem__))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    programs.keep_in(tmp_path / "run")
    assert not settings
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    programs.keep_in(tmp_path / "run")
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "run")
