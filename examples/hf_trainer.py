"""Low-precision training with Hugging Face's Trainer: a tiny BERT on scikit-learn's digits.

Needs `pip install transformers accelerate`. Then:

    python examples/hf_trainer.py
    python examples/hf_trainer.py --recipe bfp8 --folder run
    python examples/hf_trainer.py --recipe bfp8 --resume run/low/checkpoint-90
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import lowprec_eb as lp

KEPT = lp.Rounded(lp.BF16, rounding="stochastic")  # to nearest, bfloat16 would lose most of Adam's small updates
RECIPE = lp.precision("mxfp8", name="mxfp8, no float32 copy", master=KEPT, momentum=KEPT, second_moment=KEPT)


class Digits(Dataset[dict[str, Any]]):
    """1437 training or 360 test images as sequences of 8 tokens: a row of 8 black or white pixels is one of 256."""

    def __init__(self, part: str) -> None:
        digits = load_digits()
        rows = (digits.images > 7) @ (2 ** np.arange(8))
        split = train_test_split(rows, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
        tokens, labels = split[::2] if part == "train" else split[1::2]
        self.tokens, self.labels = torch.tensor(tokens), torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def make_model() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 256, "max_position_embeddings": 8, "num_labels": 10}
    model = BertForSequenceClassification(BertConfig(**sizes, **tokens, initializer_range=0.05))
    model.accepts_loss_kwargs = False  # accumulated batches are averaged then, not summed (transformers issue 47688)
    return model


class PrecisionState(TrainerCallback):
    """Running ranges, which recipes such as int8 have, in the Trainer's checkpoints: it saves weights alone."""

    def __init__(self, resume: Path | None) -> None:
        self.resume = resume

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(lp.precision_state(kwargs["model"]), folder / "precision_state.pt")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resume is not None:
            saved = torch.load(self.resume / "precision_state.pt", weights_only=True)
            lp.load_precision_state(kwargs["model"], saved)


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}


def arguments_for(folder: Path, epochs: float, **options: Any) -> TrainingArguments:
    chosen: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": epochs,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,  # of all steps
        "per_device_train_batch_size": 32,
        "max_grad_norm": 1.0,
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**(chosen | options))


def make_trainer(model: Any, arguments: TrainingArguments, recipe: Any, resume: Path | None = None) -> Trainer:
    """recipe: None trains in plain float32."""
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate)
    callbacks = []
    if recipe is not None:  # the low-precision part
        print(lp.lower(model, recipe, functional=True, strict=True))  # functional: attention's products too
        optimizer = lp.LowPrecisionOptimizer(optimizer, recipe)
        callbacks = [PrecisionState(resume)]
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Digits("train"),
        eval_dataset=Digits("test"),
        compute_metrics=accuracy,
        optimizers=(optimizer, None),  # None: the schedule that the arguments name; one of your own goes here
        callbacks=callbacks,
    )


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=RECIPE, help="bfp8, int8, fp8, ...; default: mxfp8 with its state in bf16")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a temporary folder if left out")
    parser.add_argument("--resume", type=Path, help="checkpoint folder to go on from")
    chosen = parser.parse_args(command)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        for name, recipe, resume in (("fp32", None, None), ("low", chosen.recipe, chosen.resume)):
            set_seed(0)
            arguments = arguments_for(folder / name, chosen.epochs, gradient_accumulation_steps=chosen.accumulate)
            trainer = make_trainer(make_model(), arguments, recipe, resume)
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            results[name] = trainer.evaluate()
        trainer.save_model(str(folder / "final"))
        plain = BertForSequenceClassification.from_pretrained(folder / "final")  # a plain model of transformers
        results["its weights in plain torch"] = make_trainer(plain, arguments_for(folder, 0), None).evaluate()
    for name, result in results.items():
        print(f"test accuracy, {name}: {result['eval_accuracy']:.1%} (loss {result['eval_loss']:.3f})")


if __name__ == "__main__":
    main()
