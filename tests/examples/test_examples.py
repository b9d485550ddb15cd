"""Every example runs as its reader runs it, and teaches."""

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = {"plain_loop.py": 8, "accelerate_loop.py": 8, "lightning_module.py": 8, "hf_trainer.py": 4}
"""And the student's epochs in the test."""
NOTEBOOK = "first_distillation.ipynb"


def notebook():
    import nbformat

    return nbformat.read(FOLDER / NOTEBOOK, as_version=4)


def code_cells(content):
    return [cell for cell in content.cells if cell.cell_type == "code"]


def test_every_example_is_run():
    files = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert files == {*SCRIPTS, NOTEBOOK}


def test_examples_are_short():
    for name in SCRIPTS:
        assert len((FOLDER / name).read_text().splitlines()) < 60, name
    assert sum(len(cell.source.splitlines()) for cell in code_cells(notebook())) < 60


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_teaches(name, tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / name, "--epochs", str(SCRIPTS[name])],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    teacher, before = map(
        float, re.search(r"teacher ([\d.]+) %, student before ([\d.]+) %", done.stdout).groups()
    )
    after = float(re.search(r"student after ([\d.]+) %", done.stdout).group(1))
    assert teacher > 80
    assert before < 30
    assert after > 60
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.filterwarnings("default")  # of the kernel and its sockets
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    import nbclient

    content = notebook()
    cells = code_cells(content)
    assert cells[0].source.count("epochs = 30") == 1
    cells[0].source = cells[0].source.replace("epochs = 30", "epochs = 8")
    nbclient.NotebookClient(content, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    printed = "".join(output.get("text", "") for output in shown)
    students = [float(score) for score in re.findall(r"student, .*: ([\d.]+) %", printed)]
    assert len(students) == 3
    assert min(students) > 50


def steps_of_hugging_face(batch, accumulated, folder):
    """Losses and weights after a few steps over the same rows, ``batch`` x ``accumulated`` a step."""
    from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

    found = spec_from_file_location("hf_trainer", FOLDER / "hf_trainer.py")
    module = module_from_spec(found)
    found.loader.exec_module(module)

    def net(width):  # without batch norm, which would see other batches
        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=width,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return ViTForImageClassification(config)

    torch.manual_seed(0)
    teacher, student = net(16), net(8)
    rows = [{"pixel_values": torch.randn(1, 8, 8), "labels": i % 5} for i in range(48)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    trainer = module.DistillationTrainer(student, arguments, teacher=teacher, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor(losses), torch.cat([p.detach().flatten() for p in student.parameters()])


def test_accumulated_batches_of_hugging_face_are_one_batch(tmp_path):
    """Trainer sums the losses of models that divide by the whole batch themselves; the objective does not."""
    losses, weights = steps_of_hugging_face(16, 1, tmp_path)
    accumulated, same_weights = steps_of_hugging_face(4, 4, tmp_path)
    assert len(losses) == 3
    torch.testing.assert_close(accumulated, losses, rtol=0, atol=2e-4)  # logs are rounded to four digits
    torch.testing.assert_close(same_weights, weights, rtol=1e-5, atol=1e-6)
