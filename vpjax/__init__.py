"""vpjax: post-training of video language models in JAX."""
