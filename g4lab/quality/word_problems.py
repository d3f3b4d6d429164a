"""Grade-school word problems whose answers are right by construction: the text is made from the sum that solves it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from g4lab.errors import bad
from g4lab.quality.questions import Question, identified

SUBJECT = "word_problems"
_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena")
_GOODS = (("apple", "apples"), ("pencil", "pencils"), ("ticket", "tickets"), ("stamp", "stamps"), ("book", "books"))


def word_problems(count: int, seed: int = 0) -> tuple[Question, ...]:
    """`count` different problems, each kind in turn; the same for the same seed.

    Raises:
        BadInput: count is not between 1 and 500.
    """
    if not 1 <= count <= 500:
        raise bad("count", count, "1 to 500")
    draw, made = random.Random(seed), {}
    for make in _kinds():
        if len(made) == count:
            break
        text, worked, answer = make(draw)
        made.setdefault(text, Question("", SUBJECT, text, (), str(answer), worked))
    return identified(made.values())


def _kinds() -> Iterator[Callable[[random.Random], tuple[str, str, int]]]:
    while True:
        yield from (_buys, _shares, _trip, _saves, _garden, _bus, _bakes, _discount)


def _buys(draw: random.Random) -> tuple[str, str, int]:
    who, (one, many), n, price = draw.choice(_NAMES), draw.choice(_GOODS), draw.randint(3, 9), draw.randint(2, 8)
    paid = -(-n * price // 10) * 10 + draw.choice((0, 10))
    due = n * price
    text = f"{who} buys {n} {many} at {price} coins for each {one} and pays {paid} coins. How many coins come back?"
    return text, f"{n} * {price} = {due} coins are due. {paid} - {due} = {paid - due}.", paid - due


def _shares(draw: random.Random) -> tuple[str, str, int]:
    who, (_, many), friends, each = draw.choice(_NAMES), draw.choice(_GOODS), draw.randint(3, 8), draw.randint(4, 12)
    kept = draw.randint(2, 9)
    total = friends * each + kept
    text = (
        f"{who} has {total} {many}, keeps {kept}, and shares the rest equally among {friends} friends. "
        f"How many {many} does each friend get?"
    )
    return text, f"{total} - {kept} = {total - kept} are shared. {total - kept} / {friends} = {each}.", each


def _trip(draw: random.Random) -> tuple[str, str, int]:
    speed, hours, more = draw.randrange(30, 100, 10), draw.randint(2, 5), draw.randint(5, 45)
    far = speed * hours + more
    text = f"A train runs {hours} hours at {speed} km per hour, then {more} km more. How many km does it run in all?"
    return text, f"{speed} * {hours} = {speed * hours} km. {speed * hours} + {more} = {far}.", far


def _saves(draw: random.Random) -> tuple[str, str, int]:
    who, start, week, weeks = draw.choice(_NAMES), draw.randint(10, 60), draw.randint(5, 25), draw.randint(3, 12)
    spent = draw.randint(5, start)
    total = start + week * weeks - spent
    text = (
        f"{who} has {start} euros, saves {week} euros a week for {weeks} weeks, and then spends {spent} euros. "
        "How many euros are left?"
    )
    return text, f"{week} * {weeks} = {week * weeks} are saved. {start} + {week * weeks} - {spent} = {total}.", total


def _garden(draw: random.Random) -> tuple[str, str, int]:
    long, wide = draw.randint(8, 30), draw.randint(3, 7)
    text = f"A rectangular garden is {long} m long and {wide} m wide. How many metres of fence go once around it?"
    return text, f"{long} + {wide} = {long + wide}. 2 * {long + wide} = {2 * (long + wide)}.", 2 * (long + wide)


def _bus(draw: random.Random) -> tuple[str, str, int]:
    start, out, on = draw.randint(15, 50), draw.randint(3, 14), draw.randint(2, 20)
    text = f"A bus holds {start} people. At a stop {out} get off and {on} get on. How many people does it hold then?"
    return text, f"{start} - {out} = {start - out}. {start - out} + {on} = {start - out + on}.", start - out + on


def _bakes(draw: random.Random) -> tuple[str, str, int]:
    who, trays, each, eaten = draw.choice(_NAMES), draw.randint(3, 8), draw.randint(6, 24), draw.randint(2, 15)
    left = trays * each - eaten
    text = f"{who} bakes {trays} trays of {each} rolls. {eaten} rolls are eaten. How many rolls are left?"
    return text, f"{trays} * {each} = {trays * each} rolls. {trays * each} - {eaten} = {left}.", left


def _discount(draw: random.Random) -> tuple[str, str, int]:
    price, percent = draw.randrange(20, 200, 20), draw.choice((10, 20, 25, 50))
    cut = price * percent // 100
    text = f"A coat costs {price} euros and is sold {percent} percent cheaper. How many euros does it cost now?"
    return text, f"{percent} percent of {price} is {cut}. {price} - {cut} = {price - cut}.", price - cut
