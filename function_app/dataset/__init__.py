"""What is in a dropped file: the check, its rules and its report. `python -m function_app.dataset FILE` for people.

check.py        bytes → blocks of lines → records, in one pass; start here
records.py      lines → records; explain.py says why a line is none
formats.py      what a file, a line or a record of another format is, and how to convert it; *_formats.py know them
rules.py        who speaks, in which order; findings.py: what only the whole file shows; codes.py: all rules
lengths.py      how long an example, a line and a file may be
sensitive.py    secrets and personal data; duplicates.py: what comes again; tokens.py, tally.py: numbers
split.py        what is trained on and what is held out
report.py       what was found; markdown.py and terminal.py show it, in the words of wording.py
"""
