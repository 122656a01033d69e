"""The other side of benchmarks/clients_trl.py: run by a Python that has TRL, without vpjax.

    lm/bin/python benchmarks/clients_trl_side.py MODEL ROWS.json

MODEL: an exported folder. ROWS: a list of dict(image, question, answer). Prints, as its last line, a JSON
object: ``losses``, the mean of -log p over the tokens of the answers up to the one that ends a turn, before
any training; ``tokens``, their number; ``trained``, the loss that TRL logs in each of its steps.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

STEPS = 4


def main(folder: str, rows: str) -> None:
    examples = [
        {
            "images": [Image.open(row["image"]).convert("RGB")],
            "prompt": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
            ],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}],
        }
        for row in json.loads(Path(rows).read_text())
    ]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    options = SFTConfig(
        output_dir=f"{folder}-trl",
        max_steps=STEPS,
        per_device_train_batch_size=len(examples),
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    dataset = Dataset.from_list(examples)
    trainer = SFTTrainer(model, args=options, train_dataset=dataset, processing_class=processor)
    total, count = 0.0, 0
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for batch in trainer.get_train_dataloader():
        labels = batch.pop("labels")
        with torch.no_grad():
            logprobs = model(**batch).logits[:, :-1].log_softmax(-1)
        for row, target in zip(logprobs, labels[:, 1:], strict=True):
            places = torch.nonzero(target != -100)[:, 0]
            places = places[: int(torch.nonzero(target[places] == end)[0, 0]) + 1]
            total -= float(row[places, target[places]].sum())
            count += len(places)
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(json.dumps({"loss": total / count, "tokens": count, "trained": logged}))


if __name__ == "__main__":
    main(*sys.argv[1:])
