"""The training job: fine-tune a chat model on a JSON Lines file and export it as an MLflow model.

Begin with fine_tune.py, which reads from top to bottom as the job runs; what it calls, by what it is about:

- options: arguments.py, defaults.yaml, recipes/ (presets), sharding/ (several GPUs)
- the base: base_model.py, base_files.py, base_errors.py; the embedded one: embedded_words.txt, phi3.jinja
- the data: records.py (reading), chat_templates.py, templates/, labels.py and prefix_spans.py (what is learnt), data.py
- the training: trainer.py; choices.py (how this machine does it fastest), memory.py, attention.py, loss.py,
  fewer_passes.py, adapters.py; checkpoints.py, early_stopping.py, out_of_memory.py, distributed.py
- the exam: evaluate.py, batches.py, answers.py, champion.py
- for people: progress.py, phases.py; evaluation_report.py, markdown.py, plots.py
- what is left: export.py, model_card.py; when it fails: failures.py
- before all this, by hand: prepare_dataset.py with hub.py, sources.py, convert.py, upload.py
"""


class FineTuneError(Exception):
    """A mistake that a person can mend; the job ends with exit code 1 and the text as its last line."""
