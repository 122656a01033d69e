"""What the released code of VideoChat-R1 and Video-R1 makes of a completion, stated anew for comparison.

VideoChat-R1: github.com/OpenGVLab/VideoChat-R1, src/open_r1/grpo_tasks.py. Video-R1:
github.com/tulerfeng/Video-R1, src/r1-v/src/open_r1/grpo.py. Both give 0 for what they cannot read.
"""

import ast
import re

from rouge_score.rouge_scorer import RougeScorer

LEAD_INS = ("The best answer is", "The correct answer is", "The answer is", "The answer")
LEAD_INS += ("The best option is", "The correct option is", "Best answer:Best option:")
SECONDS = r"\d+(?:\.\d+)?"
PAIR = rf"\({SECONDS},\s*{SECONDS}\)"
ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def first_tag(text, tag):
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return match[1] if match else None


def letter(text):
    """The first of the capitals A to G, wherever it stands."""
    text = text.strip()
    for lead_in in LEAD_INS:
        text = text.replace(lead_in, "")
    match = re.search("[A-G]", text)
    return match[0] if match else ""


def videochat_choice(text, answer):
    found = first_tag(text, "answer")
    return float(found is not None and letter(found) == letter(answer))


def videochat_span(text, span):
    """The last "a to b" or "a and b" of the last answer, by the hull of both spans."""
    answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    pairs = re.findall(r"(\d+\.?\d*) (?:to|and) (\d+\.?\d*)", answers[-1], re.I) if answers else []
    if not pairs:
        return 0.0
    start, end = map(float, pairs[-1])
    hull = max(end, span[1]) - min(start, span[0])
    return max(0.0, min(end, span[1]) - max(start, span[0])) / hull if hull > 0 else 0.0


def glue_spans(text):
    """The spans of a list of pairs; None if it is anything else."""
    if text is None or not re.fullmatch(rf"\[(?:{PAIR}(?:,\s*{PAIR})*,?)?\]", text):
        return None
    spans = ast.literal_eval(text)
    return spans if all(start <= end for start, end in spans) else None


def covered(spans):
    """The seconds, in hundredths, that spans cover."""
    return {k for start, end in spans for k in range(round(100 * start), round(100 * end))}


def videochat_evidence(text, spans):
    found = glue_spans(first_tag(text, "glue"))
    if found is None:
        return 0.0
    ours, theirs = covered(found), covered(spans)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def eight_boxes(text):
    """A list of eight lists of four; None if the text is anything else."""
    try:
        boxes = ast.literal_eval((text or "").replace("\n", ""))
    except (ValueError, SyntaxError):
        return None
    is_list = isinstance(boxes, list) and len(boxes) == 8
    return boxes if is_list and all(isinstance(box, list) and len(box) == 4 for box in boxes) else None


def videochat_boxes(text, reference):
    boxes = eight_boxes(first_tag(text.replace("\n", ""), "answer"))
    if boxes is None:
        return 0.0
    ious = []
    for a, b in zip(boxes, reference, strict=True):
        sides = [max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        both = sides[0] * sides[1]
        either = sum(areas) - both
        ious.append(both / either if either else 0.0)
    return sum(ious) / len(ious)


def videochat_format(text, task):
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    if task == "choice":
        pattern += r"\s*<glue>.*?</glue>"
    if not re.fullmatch(pattern, text.strip(), re.DOTALL):
        return 0.0
    if task == "choice":
        return float(glue_spans(first_tag(text, "glue")) is not None)
    return float(task != "tracking" or eight_boxes(first_tag(text, "answer")) is not None)


def video_r1_format(text):
    return float(bool(re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)))


def as_number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def video_r1_accuracy(text, solution, problem_type):
    """solution: with its tags."""
    answer, truth = ((first_tag(side, "answer") or "").strip() for side in (text, solution))
    if problem_type == "multiple choice":
        return float(answer == truth)
    if problem_type == "free-form":
        return sum(score.fmeasure for score in ROUGE.score(truth, answer).values()) / 3
    if problem_type == "OCR":
        return max(0.0, 1 - edits(truth.split(), answer.split()) / max(1, len(truth.split())))
    number, reference = as_number(answer), as_number(truth)
    if number is None or reference is None:
        return 0.0
    if problem_type == "numerical":
        same_kind = bool(re.search("[.,]", answer)) == bool(re.search("[.,]", truth))
        return float(same_kind and round(number, 2) == round(reference, 2))
    return 1 - min(1.0, (abs(number - reference) + 1e-9) / (abs(reference) + 1e-9))


def edits(a, b):
    """The words to insert, delete or replace to make ``a`` of ``b``."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(replaced, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return table[len(a), len(b)]
