"""What is read of a Dockerfile without Docker."""

from pathlib import Path

import pytest

from emulator.images import ImageError, read_dockerfile


def test_variables_keep_their_quoted_words_and_platforms_are_no_image(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        'FROM --platform=linux/amd64 python:3.11 AS base\nENV A="two words" B=1 \\\n  C=x=y\nENV D all the rest\n'
        'CMD ["serve"]\n'
    )
    dockerfile = read_dockerfile(path)
    assert dockerfile.base == "python:3.11"
    assert dockerfile.environment == {"A": "two words", "B": "1", "C": "x=y", "D": "all the rest"}


@pytest.mark.parametrize("command", ["5", '"serve"', '{"serve": 1}', "serve --now"])
def test_a_command_that_is_no_array_is_refused(tmp_path: Path, command: str) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(f"FROM python:3.11\nCMD {command}\n")
    with pytest.raises(ImageError, match="exec form"):
        read_dockerfile(path)


def test_a_dockerfile_without_an_image_is_read(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text('FROM\nCMD ["serve"]\n')
    assert read_dockerfile(path).base == ""
