"""What criteria see of a batch, for the tests that compare it with formulas by hand."""

from shadow.scores import score


def seen_of(lm, batch, names, loss="answer"):
    """-> {(criterion, layer, kind): what was seen}"""
    found = {}

    def receive(name, site, seen):
        found[name, site.layer, site.kind] = seen

    score(lm.model, batch, names, receive, loss=loss)
    return found
