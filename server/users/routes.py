"""``/me`` and ``/users``."""

from __future__ import annotations

from fastapi import APIRouter
from sqlmodel import select

from server.auth.principal import Admin, SignedIn
from server.database import Db
from server.problems import RESPONSES
from server.users import service
from server.users.models import User
from server.users.schemas import NewPerson, Person

router = APIRouter(tags=["users"], responses=RESPONSES)


@router.get("/me", summary="Who am I")
def me(who: SignedIn) -> Person:
    """The signed-in person."""
    return Person(email=who.name, role=who.role)


@router.get("/users", summary="List people")
def users(who: Admin, db: Db) -> list[Person]:
    """Everybody with an account."""
    return [Person(email=u.email, role=u.role) for u in db.exec(select(User).order_by(User.email))]


@router.post("/users", status_code=201, summary="Add a person")
def add_user(new: NewPerson, who: Admin, db: Db) -> Person:
    """Add a person with a first password."""
    user = service.add(db, new.email, new.password, new.role)
    return Person(email=user.email, role=user.role)
