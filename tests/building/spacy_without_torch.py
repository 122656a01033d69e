"""spaCy without torch, which it imports if it is installed. That takes a second and no test here needs it."""

import sys

if "torch" in sys.modules:
    import spacy
else:
    sys.modules["torch"] = None
    import spacy

    del sys.modules["torch"]

__all__ = ["spacy"]
