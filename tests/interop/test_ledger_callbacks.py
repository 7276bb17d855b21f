"""The ledgers that Lightning and the Hugging Face Trainer keep, against what their loops do."""

import importlib
import logging
from importlib.util import find_spec

import pytest
import torch
from model_cases import torchvision

import energy_models as em
import lowprec_eb as lp

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
if find_spec("torchvision"):
    torchvision()  # which both libraries import


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def totals(path):
    rows = em.Ledger(path).rows()
    return {(row.key.phase, row.key.epoch): row for row in rows}


def macs(row):
    return {gemm: sum(of.values()) for gemm, of in row.macs.items()}


# ---- Lightning ---------------------------------------------------------------------------------------------------


def lightning_parts():
    library = pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
    return (
        library,
        importlib.import_module("lightning_module"),
        importlib.import_module("lowprec_eb.integrations.lightning"),
    )


@pytest.mark.parametrize("submodule", [None, "model"])
@pytest.mark.parametrize("recipe", [None, "bfp8"])
def test_lightning(tmp_path, submodule, recipe):
    library, example, integration = lightning_parts()
    library.seed_everything(0)

    class Validated(example.Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    class Data(example.Digits):
        def val_dataloader(self):
            return torch.utils.data.DataLoader(self.test, batch_size=100)

    module = Validated(recipe)
    keeper = integration.LedgerCallback(tmp_path / "l.jsonl", submodule=submodule, run="fit")
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = library.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        callbacks=[keeper],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        val_check_interval=0.5,
        **options,
    )
    trainer.fit(module, datamodule=Data())
    rows = totals(tmp_path / "l.jsonl")
    assert sorted(rows) == [("eval", 0), ("eval", 1), ("train", 0), ("train", 1)]
    plain = example.Classifier(recipe).model
    batches = [(44, torch.zeros(32, 1, 8, 8)), (1, torch.zeros(29, 1, 8, 8))]
    counted = sum((em.count(plain, images) * times for times, images in batches), em.OpCounts())
    passed = sum((em.count(plain, torch.zeros(n, 1, 8, 8), training=False) for n in (100, 100, 100, 60)), em.OpCounts())
    for epoch in (0, 1):
        trained, evaluated = rows["train", epoch], rows["eval", epoch]
        assert macs(trained) == counted.macs and macs(evaluated) == (passed * 2).macs  # validated twice an epoch
        assert (trained.samples, evaluated.samples) == (1437, 720)
        assert trained.metrics["optimizer_steps"] == 23 and evaluated.metrics["optimizer_steps"] == 0
        assert 0 < evaluated.metrics["accuracy"] <= 1
        assert ("loss" in trained.element_ops) == (submodule is None)
    bits = {"32x32"} if recipe is None else {"8x8"}
    assert set(rows["train", 0].macs["output"]) == bits
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_lightning_says_what_to_do_about_a_step_that_needs_values(tmp_path):
    _, example, integration = lightning_parts()

    class Printing(example.Classifier):
        def training_step(self, batch):
            loss = super().training_step(batch)
            self.last = loss.item()
            return loss

    keeper = integration.LedgerCallback(tmp_path / "l.jsonl")
    with pytest.raises(ValueError, match='submodule="model"'):
        example.train(Printing(None), tmp_path, 1, callbacks=[keeper])


# ---- Trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_the_trainer(tmp_path, strategy):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers accelerate")
    pytest.importorskip("accelerate", reason="needs accelerate: pip install transformers accelerate")
    example = importlib.import_module("hf_trainer")
    integration = importlib.import_module("lowprec_eb.integrations.transformers")
    transformers.set_seed(0)
    options = {"gradient_accumulation_steps": 2, "save_strategy": "no", "eval_strategy": strategy, "eval_steps": 10}
    arguments = example.arguments_for(tmp_path, 2, per_device_eval_batch_size=90, **options)
    trainer = example.make_trainer(example.make_model(), arguments, "bfp8")
    trainer.add_callback(integration.LedgerCallback(tmp_path / "l.jsonl", run="fit"))
    trainer.train()
    rows = totals(tmp_path / "l.jsonl")
    assert sorted(rows) == [("eval", 0), ("eval", 1), ("train", 0), ("train", 1)]
    model = example.make_model()
    lp.lower(model, "bfp8", functional=True)

    def batch(size):
        return {"input_ids": torch.zeros(size, 8, dtype=torch.long), "labels": torch.zeros(size, dtype=torch.long)}

    counted = em.count(model, batch(32)) * 44 + em.count(model, batch(29))
    passed = em.count(model, batch(90), training=False) * 4
    evaluations = (1, 1) if strategy == "epoch" else (2, 3)  # after 10, 20, 30, 40 and, at the end, 46 steps
    for epoch, times in enumerate(evaluations):
        trained, evaluated = rows["train", epoch], rows["eval", epoch]
        assert macs(trained) == counted.macs and macs(evaluated) == (passed * times).macs
        assert (trained.samples, evaluated.samples) == (1437, 360 * times)
        assert trained.metrics["optimizer_steps"] == 23 and "eval_accuracy" in evaluated.metrics
    assert set(rows["train", 1].macs["output"]) == {"8x8"}
