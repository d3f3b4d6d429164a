"""Claims and features as frames and as README's tables, which stand between marker comments and are never edited."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from g4lab.claims.model import NOT_MEASURED, OWN, SAME, Book, Feature, Proof, load
from g4lab.errors import bad
from g4lab.patches import REGISTRY

if TYPE_CHECKING:
    import pandas as pd

UNSAYABLE = "cannot be said"
PLACES = {"CPU": "on a CPU, in CI", "GPU": "on an H200"}


def claims_frame(book: Book | None = None) -> pd.DataFrame:
    """One row for each claim and place that decides it: id, room, pulls, claim, kind, place, state, how, interval,
    command, evidence, peer."""
    import pandas as pd

    book = book or load()
    rows = [
        {
            "id": claim.id,
            "room": claim.room,
            "pulls": ", ".join(book.pulls_of(claim)),
            "claim": claim.claim,
            "kind": claim.kind,
            "place": place,
            "state": proof.state,
            "how": proof.how,
            "interval": proof.interval or NOT_MEASURED,
            "command": proof.command,
            "evidence": "\n".join(proof.evidence),
            "peer": claim.peer,
        }
        for claim in book.claims
        for place, proof in claim.proofs.items()
    ]
    return pd.DataFrame(rows)


def features_frame(book: Book | None = None) -> pd.DataFrame:
    """One row for each feature: pull, did, has, where, state, gap, claims."""
    import pandas as pd

    book = book or load()
    rows = [
        {
            "pull": feature.pull,
            "did": feature.did,
            "has": feature.has,
            "where": where(feature),
            "state": state(book, feature),
            "gap": feature.gap,
            "claims": ", ".join(feature.claims),
        }
        for feature in book.features
    ]
    return pd.DataFrame(rows)


def settled_by(book: Book | None = None) -> dict[str, list[str]]:
    """Step of `g4lab campaign` -> ids of the claims that it settles; "" -> those that no step does."""
    found: dict[str, list[str]] = {}
    for claim in (book or load()).claims:
        for proof in claim.proofs.values():
            if proof.state == "not measured":
                for step in proof.steps or ("",):
                    found.setdefault(step, []).append(claim.id)
    return found


def where(feature: Feature) -> str:
    """Patches, kernels, notebooks and commands of a feature, in Markdown."""
    parts = [*feature.patches, *feature.kernels, *feature.notebooks, *feature.commands]
    return ", ".join(f"`{part}`" for part in dict.fromkeys(parts))


def state(book: Book, feature: Feature) -> str:
    """What is proven of a feature's claims, counted: "CPU 3 of 3; GPU 0 of 2"; "GPU -" where nothing needs one."""
    claims = [book[id] for id in feature.claims]
    if not claims:
        return "none"
    counts = []
    for place in PLACES:
        proofs = [claim.proofs[place] for claim in claims if place in claim.proofs]
        decided = sum(proof.state != "not measured" for proof in proofs)
        counts.append(f"{place} {decided} of {len(proofs)}" if proofs else f"{place} -")
    return "; ".join(counts)


def room_table(book: Book, room: str) -> str:
    """A room's claims in Markdown, a row for each claim and machine that decides it, with everything but the evidence.

    Raises:
        BadInput: no claim has that room.
    """
    claims = [claim for claim in book.claims if claim.room == room]
    if not claims:
        raise bad("room", room, "one of " + ", ".join(dict.fromkeys(claim.room for claim in book.claims)))
    rows = []
    for claim in claims:
        first = [claim.claim, claim.kind, claim.peer]
        for place, proof in claim.proofs.items():
            said = f"{proof.state}: {proof.how}" if proof.how else proof.state
            rows.append([*first[:2], place, said, proof.interval or NOT_MEASURED, f"`{proof.command}`", first[2]])
            first = ["", "", ""]
    return markdown(["claim", "kind", "machine", "state", "interval", "command", "beside"], rows)


def features_table(book: Book) -> str:
    """What each pull request became, in Markdown, with the ids of its claims."""
    rows = [
        [_link(f.pull), f.did, f.has, where(f), state(book, f), ", ".join(f.claims) or f.gap] for f in book.features
    ]
    return markdown(["pull request", "what it did", "here", "where", "proven", "claims"], rows)


def blocks() -> dict[str, str]:
    """README's generated tables by the name of their markers."""
    book = load()
    return {"claims": _claims(book), "features": _features(book), "patches": _patches()}


def rewrite(text: str) -> str:
    """`text` with every generated table between <!-- NAME:begin --> and <!-- NAME:end --> as the data say.

    Raises:
        BadInput: a table's markers are not there exactly once, in order.
    """
    for name, table in blocks().items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1 or text.count(begin) != 1 or text.count(end) != 1:
            raise bad("markers", f"{begin} ... {end}", "once in the text, in this order")
        text = pattern.sub(lambda _, inside=f"{begin}\n{table}\n{end}": inside, text)
    return text


def markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell's line ends become spaces and its bars are escaped."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _claims(book: Book) -> str:
    rows = [[c.claim, c.kind, _said(c.cpu), _said(c.gpu)] for c in book.claims if c.headline]
    table = markdown(["claim", "kind", PLACES["CPU"], PLACES["GPU"]], rows)
    proofs = [proof for claim in book.claims for proof in claim.proofs.values()]
    waiting = sum(proof.state == "not measured" for proof in proofs)
    rest = (
        f"These are {len(rows)} of {len(book.claims)} claims; {waiting} proofs wait for a GPU. All of them, each with "
        "its command, evidence, interval and peer: [90_report](notebooks/90_report.ipynb) or `g4lab claims list`."
    )
    return f"{table}\n\n{rest}"


def _said(proof: Proof | str | None) -> str:
    if proof is None or proof == SAME:
        return proof or UNSAYABLE
    if proof.state == "not measured":
        return NOT_MEASURED
    return f"refuted: {proof.how}" if proof.state == "refuted" else proof.how


def _features(book: Book) -> str:
    rows = [
        [_link(f.pull), f.did, f.has + (f" Left out: {f.gap}" if f.gap else ""), where(f), state(book, f)]
        for f in book.features
    ]
    return markdown(["pull request", "what it did", "here", "where", "proven"], rows)


def _link(pull: str) -> str:
    repository, _, number = pull.partition("#")
    return pull if pull == OWN else f"[{pull}](https://github.com/{repository}/pull/{number})"


def _patches() -> str:
    on = {True: "by default", False: "with `all`"}
    rows = [
        [f"`{patch.name}`", "by name" if patch.opt_in else on[patch.default_on], patch.effect, patch.source]
        for patch in REGISTRY.values()
    ]
    return markdown(["patch", "on", "what it does", "source"], rows)
