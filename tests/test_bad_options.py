"""Any value of an option, a variable or a token file gives settings, or an error that names it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from service.config import Settings, SettingsError, load
from service.errors import CredentialsError, Unauthenticated
from service.observability.metrics import Metrics
from service.security.tokens import Tokens

if TYPE_CHECKING:
    from pathlib import Path

# The strings that the operating system can pass as an argument or a variable.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["nan", "inf", "-inf", "-1", "1e999", "0x10", "\u0661", "65536", "true", "null", "[]", '{"a":1}', "2147483648"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(Settings.model_fields)), value=TEXT, by_flag=st.booleans())
def test_any_value_of_an_option_is_accepted_or_rejected_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, by_flag: bool
) -> None:
    flag = f"--{name.replace('_', '-')}"
    with monkeypatch.context() as patch:
        for variable in [one for one in os.environ if one.startswith("DIGITS_")]:
            patch.delenv(variable)
        if not by_flag:
            patch.setenv(f"DIGITS_{name.upper()}", value)
        try:
            found = load([f"{flag}={value}"] if by_flag else [])
        except SettingsError as e:
            assert str(e).startswith(f"{flag} (or DIGITS_{name.upper()}) ")
            assert len(str(e).splitlines()) == 1 or any(c in repr(value) for c in "\x85\u2028\u2029")
        except SystemExit as e:  # argparse, for a switch without a valid value
            assert e.code == 2
        else:
            assert isinstance(found.described()[name], str | int | float | bool | None)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode), presented=st.text(max_size=60))
def test_any_token_file_is_accepted_or_rejected_by_name(tmp_path: Path, content: bytes, presented: str) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    try:
        tokens = Tokens(path, Metrics(CollectorRegistry()), CapturingLogger())  # type: ignore[arg-type]
    except CredentialsError as e:
        assert str(e).startswith(f"--tokens-file {path}: ")
        return
    if presented.encode() not in content:
        with pytest.raises(Unauthenticated):
            tokens.check([("authorization", f"Bearer {presented}")])
