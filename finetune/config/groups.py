"""What groups of settings have in common."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


PathText = Annotated[str, BeforeValidator(_as_text)]  # a folder may be called 2024


class Group(BaseModel):
    """Immutable settings with exactly these keys and strict types: 1e3 is no integer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OpenGroup(Group):
    """Settings with further keys, collected in `options`."""

    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def gather(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        declared = {key: value for key, value in values.items() if key in cls.model_fields and key != "options"}
        return {**declared, "options": {key: value for key, value in values.items() if key not in declared}}

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys and values, with those of `options`."""
        declared = {name: getattr(self, name) for name in type(self).model_fields if name != "options"}
        return {**declared, **self.options}
