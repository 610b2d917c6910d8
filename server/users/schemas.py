"""What the API says and hears of people."""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.users.models import Role

EMAIL = r"^[^@\s]+@[^@\s]+\.[^@\s]+$"


class Person(BaseModel):
    """A person without secrets."""

    email: str
    role: Role


class NewPerson(BaseModel):
    """A person to add."""

    email: str = Field(pattern=EMAIL, max_length=254)
    password: str = Field(min_length=10, max_length=256)
    role: Role
