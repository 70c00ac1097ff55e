"""The invariants I1 to I8 of a batch, over its output file and the simulator's ledger.

I1 every row exactly once; I2 no foreign row; I3 every line valid JSON with its newline; I4 counts are
lines; I5 each answer is the one sent for that row; I6 repeated calls within what the kills allow;
I7 tokens told are tokens sent. I8 needs what a run said before it was killed: see `battery.kills`.
"""

import collections
import json
import re

from rig import expect

Report = collections.namedtuple("Report", "ok failed calls extra_calls tokens")


def check_batch(output, ids, ledger, extra_calls=0):
    """Raises `Failed` with the first few violations; returns what was counted.

    The rows' prompts are of words `rowN`, and answers are made of their prompt's words.
    """
    sent, calls, paid = read_ledger(ledger)
    missing = set(ids)
    expected = len(missing)
    broken = Broken()
    ok = failed = accepted = tokens = 0
    for number, row in rows(output, broken):
        where = f"{output}:{number}"
        row_id = row["custom_id"]
        if row_id not in missing:
            broken.add(f"I1/I2 {where}: row {row_id!r} is foreign or twice")
            continue
        missing.remove(row_id)
        if row["status"] != "ok":
            failed += 1
            continue
        ok += 1
        body = row["response"]["body"]
        check_answer(broken, where, row_id, body)
        told = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
        tokens += told
        answers = sent.get(row["response"]["request_id"])
        if not answers:
            broken.add(f"I5 {where}: the ledger answered no request {row['response']['request_id']}")
            continue
        accepted += 1
        if told != answers.pop():
            broken.add(f"I7 {where}: {told} tokens told, another number sent")
    if missing:
        broken.add(f"I1 {len(missing)} of {expected} rows are missing: {sorted(missing)[:5]}")
    if ok + failed + len(missing) != expected:
        broken.add(f"I4 {ok} ok and {failed} failed are not {expected}")
    if paid - accepted > extra_calls:
        broken.add(f"I6 {paid - accepted} calls gave no row its answer, {extra_calls} may")
    broken.check()
    return Report(ok, failed, calls, paid - accepted, tokens)


def read_ledger(ledger):
    """Tokens of every answer by request id, all calls, and calls answered or cancelled."""
    sent, calls, paid = {}, 0, 0
    for entry in ledger:
        calls += 1
        if entry["outcome"] in ("ok", "cancelled"):
            paid += 1
        if entry["outcome"] == "ok":
            tokens = entry["prompt_tokens"] + entry["completion_tokens"]
            sent.setdefault(entry["id"], []).append(tokens)
    return sent, calls, paid


def rows(output, broken):
    with open(output, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                broken.add(f"I3 {output}:{number}: no newline at the end")
            try:
                yield number, json.loads(line)
            except ValueError as error:
                broken.add(f"I3 {output}:{number}: {error}")


def check_answer(broken, where, row_id, body):
    text = body["choices"][0]["message"]["content"]
    said = set(re.findall(r"row(\d+)(?!\d)", text))
    if said != {row_id.removeprefix("row-")}:
        broken.add(f"I5 {where}: row {row_id} has the answer of {sorted(said) or 'nobody'}: {text!r}")


class Broken:
    """The first ten violations, and how many there are."""

    def __init__(self):
        self.first, self.total = [], 0

    def add(self, violation):
        self.total += 1
        if len(self.first) < 10:
            self.first.append(violation)

    def check(self):
        lines = "\n  ".join(self.first)
        expect(self.total == 0, f"{self.total} invariants are broken:\n  {lines}")
