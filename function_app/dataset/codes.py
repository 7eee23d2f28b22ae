"""The rules by their codes: the table of docs/intake.md is made from it, and a test finds a code that is not here."""

from .report import Severity

ERROR, WARNING = Severity.ERROR, Severity.WARNING

# code: (severity, what it means in a sentence)
CODES: dict[str, tuple[Severity, str]] = {
    # the file as a whole
    "empty_file": (ERROR, "The file holds nothing, or blank lines only."),
    "wrong_place": (ERROR, "The file does not lie at `<model>/<file>.jsonl`, or the folder's name is no model name."),
    "not_json_lines": (ERROR, "The file is something else: the finding names what, and how to convert it."),
    "wrong_encoding": (ERROR, "The file is UTF-16 or UTF-32, not UTF-8."),
    "broken_gzip": (ERROR, "The `.gz` file ends in the middle, is damaged, or unpacks to more than is sensible."),
    "too_large": (ERROR, "The file is larger than can be read in one go."),
    "too_many_errors": (ERROR, "So many errors that reading on would tell nothing more."),
    "too_few_records": (ERROR, "Fewer good examples than fine-tuning needs."),
    "invalid_tokenizer": (ERROR, "tokenizer.json beside the dataset is no tokenizer of the Hugging Face library."),
    "invalid_recipe": (
        ERROR,
        "recipe.yaml, its preset or the file's metadata cannot be used, or asks for what cannot be together.",
    ),
    "over_budget": (
        ERROR,
        "By the estimate the training costs more than `compute.budget`, or it cannot be told what it costs.",
    ),
    "empty_eval": (ERROR, "eval.jsonl is there and holds no record."),
    # one line
    "line_too_long": (ERROR, "A line of more than 2 MiB."),
    "invalid_json": (ERROR, "The line is not one complete JSON object."),
    "invalid_utf8": (ERROR, "A byte that is no UTF-8, mostly from Windows-1252 or Latin-1."),
    "other_format": (ERROR, "The record is of another trainer's format: the finding names it, and how to convert it."),
    "mixed_formats": (ERROR, "The record has another of the three formats than the records before it."),
    "wrong_type": (ERROR, "A value has the wrong type, or a required one is missing."),
    "unknown_role": (ERROR, "A role other than system, user and assistant."),
    "tools": (ERROR, "The record calls tools or functions, which are not trained here."),
    "empty_content": (ERROR, "A message, prompt or completion that is empty or white space."),
    "no_assistant": (ERROR, "No message of the assistant, or all with weight 0: there is nothing to learn from."),
    "last_not_assistant": (ERROR, "The chat does not end with the assistant's answer."),
    "roles_out_of_order": (ERROR, "User and assistant do not take turns, or a system message is not the first."),
    "too_long": (ERROR, "The example does not fit into the base model's context."),
    # told, and trained on
    "over_time": (WARNING, "By the estimate the training takes longer than `compute.max_hours`, which would stop it."),
    "truncated": (WARNING, "The example is longer than `training.max_length`: its end is not trained on."),
    "maybe_too_long": (WARNING, "By the estimate the example may not fit into the base model's context."),
    "empty_text": (WARNING, "A `text` record that is empty or white space; it is left out."),
    "duplicate": (WARNING, "The same example again."),
    "near_duplicate": (WARNING, "Nearly the same example again: case, white space or a few words differ."),
    "eval_overlap": (
        WARNING,
        "The example is in eval.jsonl too; it is left out of training, so that the measure is fair.",
    ),
    "eval_near_overlap": (WARNING, "Nearly the same example is held out: the measure will flatter the model."),
    "some_without_system": (WARNING, "A system prompt on only part of the examples."),
    "secret": (WARNING, "What looks like a key, a token or a password: the model would learn it by heart."),
    "email": (WARNING, "E-mail addresses."),
    "card_number": (WARNING, "Numbers that pass as payment cards' (prefix, length and Luhn's checksum)."),
}
