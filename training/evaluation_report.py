"""evaluation.md: what a training gave, for the person who has to decide whether it may serve."""

from pathlib import Path
from typing import Any

from training.markdown import cell, duration, number, table
from training.plots import Curve, draw_lengths, draw_loss

NAMES = {"base": "base", "champion": "champion", "tuned": "challenger"}  # as they are in metrics.json and to people
# Name of a score in metrics.json, to people, and its form; of the first two and the last but one less is better.
SCORES = (
    ("loss", "loss (nats a token)", ".3f"),
    ("loss_per_character", "loss (nats a character)", ".3f"),
    ("perplexity", "perplexity", ",.2f"),
    ("token_accuracy", "tokens guessed right", ".1%"),
    ("exact_match", "short answers word for word", ".1%"),
    ("tokens_per_second", "tokens generated a second", ",.0f"),
)
EQUAL = 0.01  # of the loss; a smaller difference is called none
FEW = 30  # held-out records; with fewer, chance has a large part


def write_evaluation(
    folder: Path,
    report: dict[str, Any],
    recipe: dict[str, Any],
    lengths: tuple[list[int], list[int]],
) -> list[Path]:
    """Write evaluation.md, loss.png and lengths.png into ``folder`` and return their paths.

    ``report`` is what metrics.json holds, ``recipe`` the job's options, ``lengths`` the tokens of each example trained
    on and held out.
    """
    levels = {}
    for name, scores in (report["eval"] or {}).items():
        if name != "tuned" and scores["loss"] is not None:
            levels[NAMES[name]] = scores["loss"]
    pictures = [folder / "loss.png", folder / "lengths.png"]
    draw_loss(pictures[0], _curve(report, "curve"), _curve(report, "eval_curve"), levels)
    draw_lengths(pictures[1], *lengths, recipe["max_length"])
    text = folder / "evaluation.md"
    parts = [
        f"# Evaluation of the fine-tuned {cell(report['base_model'])}",
        verdict(report),
        *_comparison(report),
        *_answers(report),
        "## What was trained",
        _recipe(report, recipe),
        "![Loss over the optimiser steps](loss.png)",
        "## The data",
        _data(report),
        "![How many tokens the examples have](lengths.png)",
        "## Time and speed",
        _time(report),
    ]
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [text, *pictures]


def _curve(report: dict[str, Any], name: str) -> Curve:
    # A loss that was no number is null in the report.
    return [[step, loss] for step, loss in report["train"].get(name) or [] if loss is not None]


def verdict(report: dict[str, Any]) -> str:
    """Return in one or two sentences whether the challenger is better than what it would replace."""
    scores, count = report["eval"], report["records"]["eval"]
    if not scores:
        if count:
            return (
                f"**Nothing could be measured: none of the {count:,} held-out records leaves anything to compare "
                "within max_length tokens.**"
            )
        return "**Nothing was held out, so nothing says how good the challenger is on what it has not seen.**"
    rival = "champion" if "champion" in scores else "base"
    measure = "loss" if scores[rival]["loss"] is not None else "loss_per_character"
    old, new = scores[rival][measure], scores["tuned"][measure]
    if old is None or new is None:
        return f"**The challenger's loss on the {count:,} held-out records is not a number; it should not serve.**"
    change = (new - old) / old if old else 0.0
    word = "as good as" if abs(change) < EQUAL else "better than" if change < 0 else "worse than"
    unit = "" if measure == "loss" else " a character"
    text = (
        f"The challenger is {word} the {rival} on the {count:,} held-out record{'s' if count != 1 else ''}: "
        f"loss{unit} {new:.3f} instead of {old:.3f} ({change:+.0%})"
    )
    asked = report["exam"]["short_answers"]
    if asked and scores[rival]["exact_match"] is not None:
        right = {name: round(scores[name]["exact_match"] * asked) for name in ("tuned", rival)}
        text += f", {right['tuned']} of {asked} short answers word for word instead of {right[rival]}"
    return f"**{text}.**" + (" With so few records chance has a large part in that." if count < FEW else "")


def _comparison(report: dict[str, Any]) -> list[str]:
    parts = []
    scores = report["eval"]
    if scores:
        models = [name for name in NAMES if name in scores]
        header = ["", *(f">{NAMES[name]}" for name in models)]
        rows = [[title, *(number(scores[name][key], form) for name in models)] for key, title, form in SCORES]
        exam = report["exam"]
        notes = (
            f"All on the same held-out records ({report['records']['eval']:,}). "
            f"Short: an expected answer of at most {exam['short_answer_tokens']} tokens; "
            f"prompts with one that were asked: {exam['short_answers']:,}."
        )
        if "champion" in scores and scores["champion"]["loss"] is None:
            notes += (
                " The champion's tokenizer or chat template cuts the records into other tokens, so its loss a token "
                "says nothing beside the others'; the loss a character does."
            )
        parts += ["## The models compared", table(header, rows), notes]
    if report.get("champion_note"):
        parts.append(cell(report["champion_note"]))
    return parts


def _answers(report: dict[str, Any]) -> list[str]:
    if not report["samples"]:
        return []
    parts = ["## What they answer"]
    for count, sample in enumerate(report["samples"], 1):
        messages = sample["messages"]
        earlier = len(messages) - 1
        before = f" (after {earlier} earlier message{'s' if earlier > 1 else ''})" if earlier else ""
        rows = [["**asked**" + before, cell(messages[-1]["content"])]]
        if sample["expected"] is not None:
            rows.append(["expected", cell(sample["expected"])])
        rows += [[name, cell(sample[key])] for key, name in NAMES.items() if key in sample]
        parts.append(table([f"{count}", ""], rows))
    return parts


def _recipe(report: dict[str, Any], recipe: dict[str, Any]) -> str:
    chosen = {
        key: report["train"][key] for key in ("precision", "attention", "checkpointing") if key in report["train"]
    }
    rows = [[key, cell(str(value))] for key, value in recipe.items() if value is not None]
    rows += [[f"{key}, as chosen", cell(str(value))] for key, value in chosen.items()]
    return table(["option", "value"], rows)


DATA = {
    "examples": "examples trained on (records, their copies, pieces of long texts)",
    "too_long": "left out: nothing to train on within max_length",
    "cut": "cut at max_length",
    "texts": "plain texts",
    "text_examples": "examples made of them",
    "sha256": "SHA-256 of the training file",
}


def _data(report: dict[str, Any]) -> str:
    rows = [["records to train on", f"{report['records']['train']:,}"], ["held out", f"{report['records']['eval']:,}"]]
    for key, title in DATA.items():
        if key in report["data"]:
            value = report["data"][key]
            rows.append([title, f"{value:,}" if isinstance(value, int) else f"`{value}`"])
    return table(["", ">count"], rows)


def _time(report: dict[str, Any]) -> str:
    rows = [[phase, duration(seconds)] for phase, seconds in report["seconds"].items()]
    rows += [
        ["optimiser steps", f"{report['steps']:,}"],
        ["tokens trained a second", number(report["train"].get("tokens_per_second"), ",.0f")],
    ]
    return table(["", ">"], rows)
