"""What the tests of the GRPO step share: prompts, completions of them, and plain GRPO's update on both."""

import pytest


@pytest.fixture(scope="module")
def prompts():
    from tests import joint
    from tests.training.rollouts import CLIPS

    return joint.prompts_of(CLIPS)


@pytest.fixture(scope="module")
def completions():
    from tests.training.rollouts import random_completions

    return random_completions()


@pytest.fixture(scope="module")
def plain(prompts, completions):
    from tests.training.rollouts import learner

    return learner(grpo__relative__kind="none")(prompts, completions)
