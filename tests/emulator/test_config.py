"""Ports of the local Azure: a checkout's own, the same ones each time, and what happens when they are taken."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from emulator.config import PARTS, ConfigError, Home, load_project
from emulator.environment import app_environment
from function_app.chat_keys import read_keys

PROJECT = load_project(Path(__file__).resolve().parents[2] / "emulator.yaml")


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


def test_each_folder_has_its_own_ports_and_keeps_them(tmp_path: Path) -> None:
    first, second = (Home(PROJECT, tmp_path / name).prepare().ports for name in ("a", "b"))
    assert not set(first.values()) & set(second.values())
    assert Home(PROJECT, tmp_path / "a").prepare().ports == first
    (tmp_path / "a" / "state.json").unlink()
    assert Home(PROJECT, tmp_path / "a").prepare().ports == first  # they follow from the folder's path
    assert len(set(first.values())) == len(PARTS)
    assert all(20000 <= port < 30000 for port in first.values())


def test_at_the_first_start_a_taken_port_is_replaced(tmp_path: Path) -> None:
    ports = Home(PROJECT, tmp_path).prepare().ports
    (tmp_path / "state.json").unlink()
    with listening(ports["arm"]):
        again = Home(PROJECT, tmp_path).prepare().ports
    assert [part for part in PARTS if again[part] != ports[part]] == ["arm"]


def test_at_a_later_start_only_the_port_that_clients_save_is_insisted_on(tmp_path: Path) -> None:
    ports = Home(PROJECT, tmp_path).prepare().ports
    with listening(ports["mlflow"]), listening(ports["blob"]):
        again = Home(PROJECT, tmp_path).prepare().ports
    assert [part for part in PARTS if again[part] != ports[part]] == ["blob", "mlflow"]
    with listening(ports["arm"]), pytest.raises(ConfigError, match=f"Port {ports['arm']}.*another program.*make clean"):
        Home(PROJECT, tmp_path).prepare()
    assert Home(PROJECT, tmp_path).prepare().ports == again


@pytest.mark.parametrize("text", ["", "- a list", "images: {}", "event_subscriptions: 5", "registry_components: [a]"])
def test_a_file_of_another_shape_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "emulator.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        load_project(path)


def test_the_keys_of_the_projects_own_settings_stand_beside_the_one_that_is_made(tmp_path: Path) -> None:
    own = f"shop:{'0' * 16}:{'0' * 64}:models=support:concurrency=8"
    home = Home(replace(PROJECT, app_settings={"CHAT_API_KEYS": own}), tmp_path)
    environment = app_environment(home, home.prepare())
    assert [key.name for key in read_keys(environment["CHAT_API_KEYS"])] == ["shop", "local"]
    assert [key.name for key in read_keys(environment["OPERATOR_API_KEYS"])] == ["local"]
